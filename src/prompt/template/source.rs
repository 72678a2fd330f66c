//! Small changes to a template's text, where the engine's language is not quite Jinja2's.

/// The method that slices become.
pub(super) const SLICE: &str = "__slice__";
/// The filter over which loops walk.
pub(super) const ITERATE: &str = "__iterate__";

/// The template as the engine needs it:
/// - `{% generation %}` (which marks, for training, what the assistant wrote) renders its body in a scope
///   of its own: that is what `{% with %}` does.
/// - `x[a:b:c]` becomes a method call, so that slices are Python's: lists stay lists, and an empty list
///   sliced backwards is empty.
/// - `{% for x in y %}` walks over `(y)|__iterate__`, which refuses None.
///
/// Lines stay where they are.
pub(super) fn adapted(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        text.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map(|end| (end + 2, false)),
            Some(b'%') => end_of_tag(rest, "%}").map(|end| (end, true)),
            Some(b'{') => end_of_tag(rest, "}}").map(|end| (end, true)),
            _ => Some((1, false)),
        };
        // Without an end the template is not valid; the engine will say so.
        let Some((end, is_code)) = end else { break };
        let tag = &rest[..end];
        rest = &rest[end..];
        if !is_code {
            text.push_str(tag);
            continue;
        }
        match name_of(tag) {
            "generation" => text.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" => text.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            "raw" => {
                // Up to its end there is no code.
                let length = end_of_raw(rest);
                text.push_str(tag);
                text.push_str(&rest[..length]);
                rest = &rest[length..];
            }
            "for" => text.push_str(&with_slices_called(&with_loop_checked(tag))),
            _ => text.push_str(&with_slices_called(tag)),
        }
    }
    text.push_str(rest);
    text
}

/// The first word in a tag.
fn name_of(tag: &str) -> &str {
    let inner = tag[2..].trim_start_matches(['-', '+']).trim_start();
    let end = inner.find(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    &inner[..end.unwrap_or(inner.len())]
}

/// Where the `{% endraw %}` begins.
fn end_of_raw(text: &str) -> usize {
    let mut from = 0;
    while let Some(start) = text[from..].find("{%") {
        let start = from + start;
        if name_of(&text[start..]) == "endraw" {
            return start;
        }
        from = start + 2;
    }
    text.len()
}

/// Where a tag ends, its closing mark included. Marks in strings, and braces of dictionaries, do not end it.
fn end_of_tag(tag: &str, close: &str) -> Option<usize> {
    let bytes = tag.as_bytes();
    let (mut position, mut braces) = (2, 0usize);
    while position < bytes.len() {
        match bytes[position] {
            quote @ (b'"' | b'\'') => position = end_of_string(bytes, position, quote),
            b'}' if braces > 0 => {
                braces -= 1;
                position += 1;
            }
            _ if bytes[position..].starts_with(close.as_bytes()) => return Some(position + 2),
            byte => {
                braces += usize::from(byte == b'{');
                position += 1;
            }
        }
    }
    None
}

/// The position behind the string that begins at `start`.
fn end_of_string(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut position = start + 1;
    while position < bytes.len() {
        match bytes[position] {
            b'\\' => position += 2,
            byte if byte == quote => return position + 1,
            _ => position += 1,
        }
    }
    bytes.len()
}

/// A `for` tag whose list goes through the filter.
fn with_loop_checked(tag: &str) -> String {
    let words = top_level_words(tag);
    let Some(&(_, start)) = words.iter().find(|(word, _)| *word == "in") else {
        return tag.to_string();
    };
    let start = start + "in".len();
    let close = tag.len() - 2 - usize::from(matches!(tag.as_bytes()[tag.len() - 3], b'-' | b'+'));
    let end = words
        .iter()
        .find(|(word, place)| *place > start && matches!(*word, "if" | "recursive"))
        .map_or(close, |(_, place)| *place);
    format!(
        "{} ({})|{ITERATE} {}",
        &tag[..start],
        tag[start..end].trim(),
        &tag[end..]
    )
}

/// The words of a tag's code that are in no bracket and no string, and where they begin.
fn top_level_words(tag: &str) -> Vec<(&str, usize)> {
    let bytes = tag.as_bytes();
    let (mut words, mut depth, mut position) = (Vec::new(), 0usize, 2);
    while position < bytes.len() {
        match bytes[position] {
            quote @ (b'"' | b'\'') => position = end_of_string(bytes, position, quote),
            byte if byte.is_ascii_alphanumeric() || byte == b'_' => {
                let start = position;
                while position < bytes.len()
                    && (bytes[position].is_ascii_alphanumeric() || bytes[position] == b'_')
                {
                    position += 1;
                }
                // Behind a dot it is an attribute.
                if depth == 0 && bytes[start - 1] != b'.' {
                    words.push((&tag[start..position], start));
                }
            }
            byte => {
                match byte {
                    b'[' | b'(' | b'{' => depth += 1,
                    b']' | b')' | b'}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                position += 1;
            }
        }
    }
    words
}

/// One open bracket: where it is in the output, its kind, and the colons directly in it.
struct Bracket {
    start: usize,
    is_square: bool,
    colons: Vec<usize>,
}

/// Each `[a:b]` in a tag's code as `.__slice__((a), (b), none)`. Only a slice has a colon directly in
/// square brackets.
fn with_slices_called(tag: &str) -> String {
    let bytes = tag.as_bytes();
    let mut text = String::with_capacity(tag.len());
    let mut open: Vec<Bracket> = Vec::new();
    let mut position = 0;
    while position < bytes.len() {
        let mut end = position + 1;
        match bytes[position] {
            quote @ (b'"' | b'\'') => end = end_of_string(bytes, position, quote).min(bytes.len()),
            byte @ (b'[' | b'(' | b'{') => {
                open.push(Bracket {
                    start: text.len(),
                    is_square: byte == b'[',
                    colons: Vec::new(),
                });
            }
            b':' => {
                if let Some(bracket) = open.last_mut() {
                    bracket.colons.push(text.len());
                }
            }
            b']' | b')' | b'}' => {
                if let Some(bracket) = open.pop()
                    && bracket.is_square
                    && !bracket.colons.is_empty()
                {
                    let call = slice_call(&text, &bracket);
                    text.truncate(bracket.start);
                    text.push_str(&call);
                    position = end;
                    continue;
                }
            }
            _ => {
                // Code between the characters that matter, whole.
                while end < bytes.len()
                    && !matches!(
                        bytes[end],
                        b'"' | b'\'' | b'[' | b'(' | b'{' | b']' | b')' | b'}' | b':'
                    )
                {
                    end += 1;
                }
            }
        }
        text.push_str(&tag[position..end]);
        position = end;
    }
    text
}

/// The call for a slice whose text goes from `bracket.start` to the end of `text`.
fn slice_call(text: &str, bracket: &Bracket) -> String {
    let mut borders = vec![bracket.start];
    borders.extend(&bracket.colons);
    borders.push(text.len());
    let mut bounds: Vec<&str> = borders
        .windows(2)
        .map(|pair| text[pair[0] + 1..pair[1]].trim())
        .collect();
    bounds.resize(bounds.len().max(3), "");
    let bounds: Vec<&str> = bounds
        .into_iter()
        .map(|bound| if bound.is_empty() { "none" } else { bound })
        .collect();
    format!(".{SLICE}({})", bounds.join(", "))
}

#[cfg(test)]
mod tests {
    use super::adapted;

    #[test]
    fn slices_become_calls() {
        for (template, expected) in [
            ("{{ a[1:] }}", "{{ a.__slice__(1, none, none) }}"),
            ("{{ a[:-1][0] }}", "{{ a.__slice__(none, -1, none)[0] }}"),
            (
                "{%- for m in a[::-1] -%}",
                "{%- for m in (a.__slice__(none, none, -1))|__iterate__ -%}",
            ),
            (
                "{% for k, v in x.if|items if k not in y %}",
                "{% for k, v in (x.if|items)|__iterate__ if k not in y %}",
            ),
            (
                "{% for n in 'in', (a if b else c) recursive %}",
                "{% for n in ('in', (a if b else c))|__iterate__ recursive %}",
            ),
            (
                "{{ a[b[1:2]|length : x['k:l'] ] }}",
                "{{ a.__slice__(b.__slice__(1, 2, none)|length, x['k:l'], none) }}",
            ),
            ("{{ {'a': [1, 2]}['a'][0] }}", "{{ {'a': [1, 2]}['a'][0] }}"),
            (
                "{{ f({'a': 1}[x])[y:] }}",
                "{{ f({'a': 1}[x]).__slice__(y, none, none) }}",
            ),
            (
                "a[1:] {# a[1:] #} {{ 'a[1:] }}' }}",
                "a[1:] {# a[1:] #} {{ 'a[1:] }}' }}",
            ),
            (
                "{% raw %}{{ a[1:] }}{% endraw %}",
                "{% raw %}{{ a[1:] }}{% endraw %}",
            ),
            (
                "{{ {'a': {'b': 1}} }}{{ 'é'[0:1] }}",
                "{{ {'a': {'b': 1}} }}{{ 'é'.__slice__(0, 1, none) }}",
            ),
            (
                "{%- generation -%}x{% endgeneration %}",
                "{%- with -%}x{% endwith %}",
            ),
            ("{{ open[1:", "{{ open[1:"),
            ("{ {", "{ {"),
        ] {
            assert_eq!(adapted(template), expected);
        }
    }
}
