//! Where a file, or everything below a path, goes within the cluster: for `cp` and `mv`.

use cairn_client::names::check_path;
use cairn_client::{Client, FileInfo};

use crate::address::Address;
use crate::below::has_files_below;
use crate::failure::Failure;

/// What goes, and where to.
pub enum Places {
    File {
        file: FileInfo,
        to: String,
    },
    /// Everything below the source, each under its name there after `prefix`.
    Folder {
        prefix: String,
    },
}

/// Finds out what `source` is, and where `target` means it to go. `done` is what is done with it, for messages: "copied".
pub async fn places(
    client: &Client,
    (source, target): (&Address, &Address),
    done: &str,
) -> Result<Places, Failure> {
    if !source.is_folder {
        match client.stat(&source.volume, &source.path).await {
            Ok(file) => return Ok(Places::File { to: file_target(source, target, done)?, file }),
            Err(error) if error.code_name() == "FILE_NOT_FOUND" => {}
            Err(error) => return Err(error.into()),
        }
    }
    let prefix = folder_target(source, target)?;
    if !source.path.is_empty() && !has_files_below(client, source).await? {
        let help = format!("see `cairn ls {}`", source.volume);
        return Err(Failure::not_found(format!("there is no file {source}, and none below it"), help));
    }
    Ok(Places::Folder { prefix })
}

fn file_target(source: &Address, target: &Address, done: &str) -> Result<String, Failure> {
    let to =
        if target.is_folder { format!("{}{}", target.prefix(), source.name()) } else { target.path.clone() };
    if source.volume == target.volume && source.path == to {
        return Err(Failure::usage(format!("{source} cannot be {done} onto itself"), "name another path"));
    }
    check_path(&to).map_err(|problem| Failure::path(problem.to_string(), "choose a shorter path"))?;
    Ok(to)
}

/// What the new names begin with.
fn folder_target(source: &Address, target: &Address) -> Result<String, Failure> {
    let prefix = match target.is_folder && !source.path.is_empty() {
        true => format!("{}{}/", target.prefix(), source.name()),
        // A whole volume has no name to take along.
        false => target.prefix(),
    };
    let from = source.prefix();
    // What was done already would be done again, or take the place of what is still to be done.
    if source.volume == target.volume && (prefix.starts_with(&from) || from.starts_with(&prefix)) {
        let cause = format!("{source} and {}/{prefix} are within each other", target.volume);
        return Err(Failure::usage(cause, "choose a path beside it, or another volume"));
    }
    Ok(prefix)
}

/// The new name of a file that is below a folder by this one.
pub fn below(prefix: &str, relative: &str) -> Result<String, Failure> {
    let to = format!("{prefix}{relative}");
    let checked = check_path(&to).map(|()| to);
    checked.map_err(|problem| Failure::path(problem.to_string(), "choose a shorter path"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn files_and_folders_go_where_the_help_says() {
        let file = |source: &str, target: &str| file_target(&address(source), &address(target), "copied");
        assert_eq!(file("files/a/b.txt", "files/c.txt").unwrap(), "c.txt");
        assert_eq!(file("files/a/b.txt", "files").unwrap(), "b.txt");
        assert_eq!(file("files/a/b.txt", "files/c/").unwrap(), "c/b.txt");
        assert_eq!(file("files/a/b.txt", "other/a/").unwrap(), "a/b.txt");
        for target in ["files/a/b.txt", "files/a/"] {
            assert_eq!(file("files/a/b.txt", target).unwrap_err().exit, Exit::Usage, "{target}");
        }
        let folder = |source: &str, target: &str| folder_target(&address(source), &address(target));
        assert_eq!(folder("files/photos", "other").unwrap(), "photos/");
        assert_eq!(folder("files/photos", "other/p").unwrap(), "p/");
        assert_eq!(folder("files/2026/photos", "other/p/").unwrap(), "p/photos/");
        assert_eq!(folder("files", "other").unwrap(), "", "a volume has no name to take along");
        assert_eq!(folder("files", "other/old/").unwrap(), "old/");
        assert_eq!(folder("files/photos", "files/photos2").unwrap(), "photos2/", "it is another folder");
        assert_eq!(folder("files/a/b", "files").unwrap(), "b/");
    }

    #[test]
    fn a_folder_does_not_go_into_itself() {
        for (source, target) in [
            ("files/a", "files/a"),
            ("files/a", "files/a/b"),
            ("files/a", "files"),
            ("files/a/b", "files/a"),
            ("files", "files/copy"),
            ("files", "files"),
        ] {
            let refused = folder_target(&address(source), &address(target)).unwrap_err();
            assert_eq!(refused.exit, Exit::Usage, "{source} {target}");
        }
    }
}
