//! What templates take for granted because Jinja runs in Python.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::filters;
use super::source::SLICE;
use super::values::python_str;

/// Adds Python's methods, its way of printing values, and the filters as transformers has them.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&python_str(value)).map_err(Error::from),
    });
    filters::install(environment);
}

fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    match name {
        SLICE => {
            let (start, stop, step) = from_args(arguments)?;
            slice(value, start, stop, step)
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

/// `value[start:stop:step]`.
fn slice(
    value: &Value,
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<Value, Error> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "slice step cannot be zero",
        ));
    }
    match value.kind() {
        ValueKind::String => {
            let characters: Vec<char> = value.as_str().unwrap_or_default().chars().collect();
            let places = slice_places(characters.len(), start, stop, step);
            Ok(Value::from(
                places.map(|place| characters[place]).collect::<String>(),
            ))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let chosen: Vec<Value> = slice_places(items.len(), start, stop, step)
                .map(|place| items[place].clone())
                .collect();
            Ok(if value.is_tuple() {
                Value::from(Tuple::from(chosen))
            } else {
                Value::from(chosen)
            })
        }
        kind => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("value of type {kind} cannot be sliced"),
        )),
    }
}

/// The places that Python's `slice(start, stop, step).indices(length)` walks over; `step` is not 0.
fn slice_places(
    length: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
) -> impl Iterator<Item = usize> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    // Going backwards, the places run from -1 (before the first) to the last.
    let (least, most) = if step > 0 {
        (0, length)
    } else {
        (-1, length - 1)
    };
    let bound = |given: Option<i64>, default: i64| match given {
        None => default,
        Some(place) if place < 0 => place.saturating_add(length).max(least),
        Some(place) => place.min(most),
    };
    let (start, stop) = if step > 0 {
        (bound(start, least), bound(stop, most))
    } else {
        (bound(start, most), bound(stop, least))
    };
    let mut place = start;
    std::iter::from_fn(move || {
        let inside = if step > 0 { place < stop } else { place > stop };
        let found = inside.then_some(place);
        place = place.saturating_add(step);
        found.and_then(|place| usize::try_from(place).ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_pythons() {
        let places = |start, stop, step| slice_places(5, start, stop, step).collect::<Vec<_>>();
        assert_eq!(places(None, None, 1), [0, 1, 2, 3, 4]);
        assert_eq!(places(Some(1), Some(-1), 1), [1, 2, 3]);
        assert_eq!(places(None, None, -1), [4, 3, 2, 1, 0]);
        assert_eq!(places(Some(-2), None, -2), [3, 1]);
        assert_eq!(places(Some(7), Some(9), 1), [] as [usize; 0]);
        assert_eq!(places(Some(9), Some(2), -1), [4, 3]);
        assert_eq!(places(Some(-9), Some(2), 1), [0, 1]);
        assert_eq!(places(None, Some(-9), -1), [4, 3, 2, 1, 0]);
        assert_eq!(slice_places(0, None, None, -1).count(), 0);
    }
}
