//! The command lines that documents and deployment files show, so that each program can hold them to its own options.
//! Tests of other crates take this file in by its path: it needs the standard library and clap.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;

/// A command line of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownCommand {
    /// Where it is, as FILE:LINE.
    pub place: String,
    /// The program's name and its arguments.
    pub words: Vec<String>,
    /// Whether something is left out: it stands in a sentence, or has `...`.
    pub shortened: bool,
}

/// The files that show commands, below the root of the repository.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs"), root.join("deploy")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            // Templates have commands whose words are filled in later.
            if path.is_dir() && path.file_name().is_some_and(|name| name != "templates") {
                folders.push(path);
            } else if path.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Every command of `program` that the documents and deployment files of the repository show.
pub fn shown_commands(root: &Path, program: &str) -> Vec<ShownCommand> {
    // A dashboard has the program's name for a tag.
    let files = files(root).into_iter().filter(|path| path.extension().is_none_or(|ending| ending != "json"));
    let texts = files.filter_map(|path| Some((fs::read_to_string(&path).ok()?, path)));
    texts
        .flat_map(|(text, path)| {
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            commands_of(&name, &text, program)
        })
        .collect()
}

/// The shown commands of `program` that its options refuse, each with where it stands and why. At least `least` are found.
pub fn refused_commands<P: Parser>(root: &Path, program: &str, least: usize) -> Vec<String> {
    let commands = shown_commands(root, program);
    assert!(commands.len() >= least, "{} commands were found", commands.len());
    let mut refused = Vec::new();
    for command in commands {
        let Err(error) = P::try_parse_from(&command.words) else { continue };
        // A sentence may leave values out, and name them by words such as N.
        let wrong = [ErrorKind::UnknownArgument, ErrorKind::InvalidSubcommand, ErrorKind::ArgumentConflict];
        if !command.shortened || wrong.contains(&error.kind()) {
            refused.push(format!("{}: {}\n{error}", command.place, command.words.join(" ")));
        }
    }
    refused
}

/// The commands of `program` in one file.
fn commands_of(name: &str, text: &str, program: &str) -> Vec<ShownCommand> {
    let markdown = name.ends_with(".md");
    let mut found = Vec::new();
    let (mut fenced, mut line) = (false, String::new());
    for (index, part) in text.lines().enumerate() {
        if markdown && part.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        line.push_str(part.trim_end_matches('\\'));
        if part.ends_with('\\') {
            continue;
        }
        let whole = std::mem::take(&mut line);
        let place = format!("{name}:{}", index + 1);
        // A comment that quotes a command is a sentence.
        let sentence = whole.trim_start().starts_with('#') && whole.contains('`');
        let code = if markdown { fenced || whole.starts_with("    ") } else { !sentence };
        let lines: Vec<&str> = if code {
            vec![
                whole
                    .trim_start()
                    .trim_start_matches("# ")
                    .trim_start_matches("#   ")
                    .trim_start_matches("$ "),
            ]
        } else {
            // Every second piece between backticks is code.
            whole.split('`').skip(1).step_by(2).filter(|span| span.starts_with(program)).collect()
        };
        for line in lines {
            for mut words in commands_of_line(line, program) {
                // A shell fills in any number of words, or one.
                let left_out = |word: &String| word == "..." || word.starts_with("${");
                let shortened = !code || words.iter().any(left_out);
                words.retain(|word| !left_out(word));
                words.iter_mut().for_each(|word| *word = word.replace('$', ""));
                found.push(ShownCommand { place: place.clone(), words, shortened });
            }
        }
    }
    found
}

/// The commands of `program` among those of one line of a shell script.
fn commands_of_line(line: &str, program: &str) -> Vec<Vec<String>> {
    let line = line.strip_prefix("ExecStart=").unwrap_or(line);
    let mut found = Vec::new();
    for command in simple_commands(line) {
        let is_program = |word: &String| word == program || word.ends_with(&format!("/{program}"));
        let assigns = |word: &&String| {
            word.split_once('=').is_some_and(|(name, _)| {
                !name.is_empty()
                    && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
            })
        };
        let first = command.iter().take_while(assigns).count();
        // As in `kubectl exec POD -- coxswain status` or `srun coxswain-worker`.
        let carriers = ["--", "coordinator", "exec", "srun", "sudo"];
        let starts = |at: &usize| *at == first || carriers.contains(&command[*at - 1].as_str());
        let at = (first..command.len()).find(|at| is_program(&command[*at]) && starts(at));
        if let Some(at) = at {
            let mut words = command[at..].to_vec();
            program.clone_into(&mut words[0]);
            found.push(words);
        }
    }
    found
}

/// The words of each command of a line, up to its comment. Redirections are left out.
fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut begun, mut quote, mut redirects) = (String::new(), false, None, false);

    let end_word =
        |word: &mut String, begun: &mut bool, redirects: &mut bool, commands: &mut Vec<Vec<String>>| {
            let text = std::mem::take(word);
            if std::mem::take(begun) && !std::mem::take(redirects) {
                commands.last_mut().into_iter().for_each(|last: &mut Vec<String>| last.push(text.clone()));
            }
        };
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => (quote, begun) = (Some(c), true),
            (None, '#') if !begun => break,
            (None, '|' | '&' | ';' | '(' | ')' | '`') => {
                end_word(&mut word, &mut begun, &mut redirects, &mut commands);
                commands.push(Vec::new());
            }
            (None, '>' | '<') => {
                end_word(&mut word, &mut begun, &mut redirects, &mut commands);
                redirects = true;
            }
            (None, c) if c.is_whitespace() => end_word(&mut word, &mut begun, &mut redirects, &mut commands),
            (None, c) => {
                word.push(c);
                begun = true;
            }
        }
    }
    end_word(&mut word, &mut begun, &mut redirects, &mut commands);
    commands.retain(|command| !command.is_empty());
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_where_people_would_copy_them() {
        let text = "Run `coxswain plan` or `coxswain-worker`, not coxswain status.
```sh
export A=b COXSWAIN_X=y
coxswain certs init --dir tls --host 10.0.0.1     # once
A=b coxswain serve ... --listen a:1 \\
    --data-dir 'a b' > log
kubectl exec coxswain-0 -- coxswain submit /data/job.yaml && echo \"done | coxswain\"
cat start.txt | coxswain generate --prompt-file - &
```
    $ coxswain up mine.yaml --out runs/1
";
        let found = commands_of("a.md", text, "coxswain");
        let shown: Vec<String> = found
            .iter()
            .map(|command| format!("{} {} {}", command.place, command.shortened, command.words.join("|")))
            .collect();
        let expected = [
            "a.md:1 true coxswain|plan",
            "a.md:4 false coxswain|certs|init|--dir|tls|--host|10.0.0.1",
            "a.md:6 true coxswain|serve|--listen|a:1|--data-dir|a b",
            "a.md:7 false coxswain|submit|/data/job.yaml",
            "a.md:8 false coxswain|generate|--prompt-file|-",
            "a.md:10 false coxswain|up|mine.yaml|--out|runs/1",
        ];
        // A span in a sentence may start with the name of another program.
        let shown: Vec<_> = shown.iter().filter(|line| !line.ends_with("-worker")).collect();
        assert_eq!(shown, expected.iter().collect::<Vec<_>>());
        let unit = commands_of(
            "a.service",
            "ExecStart=/opt/coxswain/bin/coxswain-worker --devices all\n",
            "coxswain-worker",
        );
        assert_eq!(unit[0].words, ["coxswain-worker", "--devices", "all"]);
    }
}
