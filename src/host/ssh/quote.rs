//! The one place where argv becomes a line for a shell: the login shell at the other end of ssh.

/// Quotes a word so that a POSIX shell reads exactly it.
///
/// Within single quotes every byte means itself but the quote (POSIX, "Shell Command Language", 2.2.2).
pub(super) fn word(text: &str) -> String {
    let plain = !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+:,@%=".contains(&b))
        // What begins with these could be an assignment, a home directory or an expansion of some shell.
        && !text.starts_with(['=', '%', '~']);
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Quotes words and joins them to one line.
pub(super) fn line<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_every_word_as_it_was() {
        let nasty = [
            "",
            " ",
            "a b",
            "it's",
            "'",
            "''",
            "\"",
            "\\",
            "\\'",
            "$HOME",
            "$(id)",
            "`id`",
            "a;b",
            "a|b",
            "a&b",
            "a\nb",
            "a\tb",
            "*",
            "?",
            "[a]",
            "{a,b}",
            "~",
            "~root",
            "!",
            "!!",
            "#x",
            "a#",
            "-n",
            "--",
            "=a",
            "a=b",
            "%1",
            "(x)",
            "<x",
            ">x",
            "é",
            "\u{1}",
            "\r",
            "x'$(id)'y",
            "plain/path-1.2_3",
        ];
        let mut words = vec!["printf", "%s\\0"];
        words.extend(nasty);
        for shell in ["sh", "bash"] {
            let output =
                std::process::Command::new(shell).args(["-c", &line(words.clone())]).output().unwrap();
            assert!(output.status.success());
            let read: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
            let sent: Vec<&[u8]> = nasty.iter().map(|word| word.as_bytes()).chain([b"".as_slice()]).collect();
            assert_eq!(read, sent, "{shell}");
        }
    }

    #[test]
    fn plain_words_stay_readable() {
        assert_eq!(line(["/usr/bin/stat", "-c", "%f %s"]), "/usr/bin/stat -c '%f %s'");
    }
}
