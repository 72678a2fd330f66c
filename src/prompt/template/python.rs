//! What templates take for granted because Jinja runs in Python.

use minijinja::{Environment, Error, State, Value};

use super::json;

/// Adds Python's methods and the filters as transformers has them.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", json::tojson);
}

fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}
