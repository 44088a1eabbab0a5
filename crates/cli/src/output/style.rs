//! Colours, on terminals only. SOURCE: no-color.org for NO_COLOR; ECMA-48 for the sequences.

/// Colours with a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    /// All is well.
    Good,
    /// Under way.
    Busy,
    /// Something is wrong.
    Bad,
    /// A heading.
    Strong,
}

/// Whether to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Styles {
    enabled: bool,
}

impl Styles {
    /// For standard output.
    pub(crate) fn stdout() -> Self {
        Self { enabled: super::stdout_is_terminal() && wanted() }
    }

    /// For standard error.
    pub(crate) fn stderr() -> Self {
        Self { enabled: super::stderr_is_terminal() && wanted() }
    }

    /// Never any colour.
    pub(crate) const fn plain() -> Self {
        Self { enabled: false }
    }

    /// Always colours.
    #[cfg(test)]
    pub(crate) const fn coloured() -> Self {
        Self { enabled: true }
    }

    /// The text in that colour.
    pub(crate) fn paint(self, colour: Colour, text: &str) -> String {
        if !self.enabled || text.is_empty() {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Good => "32",
            Colour::Busy => "33",
            Colour::Bad => "31",
            Colour::Strong => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

fn wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
