//! What the text forms of the configuration have in common: addresses, ports, and errors that name the place. Pure.

/// Why a text could not be read as a value of this crate.
///
/// The message quotes the text, names the part that does not fit, and shows the form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: expected {expected} at byte {position}, found {found:?}; the form is {form}")]
pub struct ParseError {
    text: String,
    position: usize,
    found: String,
    expected: &'static str,
    form: &'static str,
}

impl ParseError {
    /// Where the part begins that does not fit, in bytes from the start of the text.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// What should be there, in words.
    #[must_use]
    pub fn expected(&self) -> &str {
        self.expected
    }
}

/// A text that is being read, and the form it should have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Notation<'a> {
    pub(crate) text: &'a str,
    pub(crate) form: &'static str,
}

impl Notation<'_> {
    /// An error about `found`, a part of the text.
    pub(crate) fn unexpected(&self, found: &str, expected: &'static str) -> ParseError {
        // The part is a slice of the text, so their addresses tell where it begins.
        let position = found.as_ptr().addr().saturating_sub(self.text.as_ptr().addr());
        let position = position.min(self.text.len());
        ParseError { text: self.text.into(), position, found: found.into(), expected, form: self.form }
    }
}
