//! What the tables say of how calls are written where an answer must be one.

use crate::prompt::tools::parameters::Parameters;

/// One way to write all calls of an answer. Where a format has several, the model takes the one it knows.
#[derive(Debug, Clone, Copy)]
pub(in crate::prompt::tools) struct Way {
    /// Begins the calls.
    pub(in crate::prompt::tools) open: &'static str,
    /// Text may come before it.
    pub(in crate::prompt::tools) anywhere: bool,
    /// Each call.
    pub(in crate::prompt::tools) call: &'static [Piece],
    /// Between two calls. None: there is only one.
    pub(in crate::prompt::tools) between: Option<&'static str>,
    /// Ends the calls.
    pub(in crate::prompt::tools) close: &'static str,
}

impl Way {
    /// With nothing in it.
    pub(in crate::prompt::tools) const EMPTY: Way = Way {
        open: "",
        anywhere: true,
        call: &[],
        between: None,
        close: "",
    };

    /// A list of objects with `name` and `arguments` between these.
    pub(in crate::prompt::tools) const fn list(open: &'static str, close: &'static str) -> Way {
        Way {
            open,
            call: OBJECT,
            between: Some(", "),
            close,
            ..Way::EMPTY
        }
    }
}

/// A call as an object.
pub(in crate::prompt::tools) const OBJECT: &[Piece] = &[
    Piece::Text("{\"name\": "),
    Piece::QuotedName,
    Piece::Text(", \"arguments\": "),
    Piece::Json,
    Piece::Text("}"),
];

/// A part of a call.
#[derive(Debug, Clone, Copy)]
pub(in crate::prompt::tools) enum Piece {
    Text(&'static str),
    /// One of these, or nothing.
    Maybe(&'static [&'static str]),
    /// Text that this regular expression matches.
    Expression(&'static str),
    Name,
    /// The name as a JSON string.
    QuotedName,
    /// The arguments as JSON.
    Json,
    /// `<key>value</key>…`, without what ends the last one.
    Tagged(&'static Tagged),
    /// `key=value, …`.
    Python,
    /// `key:value,…`.
    Gemma,
}

/// How parameters are set between their tags.
#[derive(Debug, Clone, Copy)]
pub(in crate::prompt::tools) struct Tagged {
    pub(in crate::prompt::tools) tags: &'static Parameters,
    /// Before each parameter's tag and the one behind the last.
    pub(in crate::prompt::tools) before: Gap,
    /// Between a key's end and what opens its value.
    pub(in crate::prompt::tools) between: Gap,
}

/// What stands between two tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::prompt::tools) enum Gap {
    Nothing,
    Newline,
    /// A newline or nothing.
    MaybeNewline,
}
