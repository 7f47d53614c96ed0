//! From text to tokens.

use super::FilterError;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Name(String),
    Integer(i64),
    Double(f64),
    Text(String),
    /// An operator or a bracket.
    Sign(&'static str),
}

/// A token, and the character at which it begins, from 1.
pub(super) type Placed = (Token, usize);

/// The longer ones first.
const SIGNS: [&str; 24] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "+", "-", "*", "/", "%", "(", ")", "[", "]", "{", "}",
    ",", ".", "?", ":",
];

pub(super) fn tokens(text: &str) -> Result<Vec<Placed>, FilterError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let at = text.len() - rest.len();
        let place = text.get(..at).map_or(0, |before| before.chars().count()) + 1;
        let Some(first) = rest.chars().next() else { return Ok(tokens) };
        let (token, after) = match first {
            'a'..='z' | 'A'..='Z' | '_' => name(rest),
            '0'..='9' => number(rest, place)?,
            '"' | '\'' => quoted(rest, first, place)?,
            other => sign(rest)
                .ok_or_else(|| FilterError { at: place, what: format!("{other:?} has no meaning here") })?,
        };
        tokens.push((token, place));
        rest = after;
    }
}

fn sign(rest: &str) -> Option<(Token, &str)> {
    SIGNS.into_iter().find_map(|sign| Some((Token::Sign(sign), rest.strip_prefix(sign)?)))
}

fn split(rest: &str, is_part: impl Fn(char) -> bool) -> (&str, &str) {
    rest.split_at(rest.find(|character| !is_part(character)).unwrap_or(rest.len()))
}

fn name(rest: &str) -> (Token, &str) {
    let (name, after) = split(rest, |character| character.is_ascii_alphanumeric() || character == '_');
    (Token::Name(name.to_owned()), after)
}

/// Decimal; a trailing `u` says no more than that it is not negative.
fn number(rest: &str, at: usize) -> Result<(Token, &str), FilterError> {
    let (whole, after) = split(rest, |character| character.is_ascii_digit());
    let wrong = || FilterError { at, what: format!("the number {whole} is too large") };
    if let Some(fraction) = after.strip_prefix('.').filter(|it| it.starts_with(|c: char| c.is_ascii_digit()))
    {
        let (fraction, after) = split(fraction, |character| character.is_ascii_digit());
        let value = format!("{whole}.{fraction}").parse().map_err(|_| wrong())?;
        return Ok((Token::Double(value), after));
    }
    let after = after.strip_prefix(['u', 'U']).unwrap_or(after);
    Ok((Token::Integer(whole.parse().map_err(|_| wrong())?), after))
}

fn quoted(rest: &str, quote: char, at: usize) -> Result<(Token, &str), FilterError> {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1);
    while let Some((index, character)) = characters.next() {
        match character {
            '\\' => match characters.next().map(|(_, escaped)| escaped) {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(escaped @ ('\\' | '\'' | '"')) => text.push(escaped),
                _ => {
                    let what = "a backslash stands only before a quote, a backslash, n or t".to_owned();
                    return Err(FilterError { at, what });
                }
            },
            _ if character == quote => {
                return Ok((Token::Text(text), rest.get(index + 1..).unwrap_or_default()));
            }
            _ => text.push(character),
        }
    }
    Err(FilterError { at, what: "the text has no closing quote".to_owned() })
}
