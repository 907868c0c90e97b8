//! What a Dockerfile says of the image that it makes: the words of its last stage, and the files that the stage before
//! has put together for it. Understands the instructions that ours has and refuses others.

use anyhow::{Context, Result, bail, ensure};

/// An image made from nothing but some programs and empty folders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    pub user: Owner,
    pub entrypoint: Vec<String>,
    pub exposed: Vec<u16>,
    /// At the root.
    pub programs: Vec<String>,
    /// At the root, and empty.
    pub folders: Vec<String>,
    /// Whose the files are.
    pub owner: Owner,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub user: u32,
    pub group: u32,
}

/// The folder in which the stage before puts the image together.
const PLACE: &str = "/image/";

/// Reads a Dockerfile whose last stage is `FROM scratch`.
pub fn parse(text: &str) -> Result<Image> {
    let instructions = instructions(text);
    let start = instructions.iter().rposition(|(word, _)| word == "FROM").context("there is no FROM")?;
    let (before, last) = instructions.split_at(start);
    let mut image = Image::default();
    for (word, rest) in last {
        let words: Vec<&str> = rest.split_whitespace().collect();
        match (word.as_str(), words.as_slice()) {
            ("FROM", ["scratch"]) => {}
            ("COPY", [from, owner, PLACE, "/"]) if *from == "--from=build" => {
                image.owner = Owner::parse(owner.strip_prefix("--chown=").context("COPY without --chown")?)?;
                ensure!(
                    before.iter().any(|(_, rest)| rest.ends_with(" AS build")),
                    "there is no stage build"
                );
                put_together(before, &mut image)?;
            }
            ("USER", [user]) => image.user = Owner::parse(user)?,
            ("EXPOSE", ports) => {
                image.exposed = ports.iter().map(|port| port.parse()).collect::<Result<_, _>>()?;
            }
            ("ENTRYPOINT", _) => image.entrypoint = serde_json::from_str(rest)?,
            _ => bail!("the last stage says what is not understood here: {word} {rest}"),
        }
    }
    Ok(image)
}

impl Owner {
    fn parse(text: &str) -> Result<Self> {
        let parts =
            text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
        let (user, group) = parts.with_context(|| format!("{text:?} is not UID:GID"))?;
        Ok(Self { user, group })
    }
}

/// Each instruction with its arguments, on one line and without comments.
fn instructions(text: &str) -> Vec<(String, String)> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    let split = |line: &str| {
        let (word, rest) = line.trim().split_once(' ')?;
        Some((word.to_string(), rest.trim().to_string()))
    };
    joined.lines().filter_map(split).collect()
}

/// Finds the `mkdir` and the `cp` that fill [`PLACE`].
fn put_together(before: &[(String, String)], image: &mut Image) -> Result<()> {
    let runs = before.iter().filter(|(word, _)| word == "RUN");
    for command in runs.flat_map(|(_, rest)| rest.split("&&")).filter(|command| command.contains(PLACE)) {
        // `$(rustc --print host-tuple)` is no word that matters.
        let words: Vec<&str> = command.split_whitespace().map(|word| word.trim_matches('"')).collect();
        match words.as_slice() {
            ["mkdir", "-p", folders @ ..] => {
                let names = folders.iter().map(|folder| folder.strip_prefix(PLACE).map(str::to_string));
                image.folders = names.collect::<Option<_>>().context("a folder outside of the image")?;
            }
            ["cp", sources @ .., PLACE] => {
                let programs = sources.iter().filter_map(|source| source.split_once(")/release/"));
                image.programs = programs.map(|(_, name)| name.to_string()).collect();
            }
            _ => bail!("not understood: {command}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# A comment
FROM rust AS build
RUN make && mkdir -p /image/data \\
 && cp \"target/$(rustc --print host-tuple)/release/one\" \\
       \"target/$(rustc --print host-tuple)/release/two\" /image/
FROM scratch
COPY --from=build --chown=1:2 /image/ /
USER 3:4
EXPOSE 5 6
ENTRYPOINT [\"/one\"]
";

    #[test]
    fn the_last_stage_is_understood() {
        let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
        let image = Image {
            user: Owner { user: 3, group: 4 },
            entrypoint: words(&["/one"]),
            exposed: vec![5, 6],
            programs: words(&["one", "two"]),
            folders: words(&["data"]),
            owner: Owner { user: 1, group: 2 },
        };
        assert_eq!(parse(FILE).unwrap(), image);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (from, to) in [
            ("FROM scratch", "FROM debian"),
            ("USER 3:4", "USER nobody"),
            ("EXPOSE 5 6", "VOLUME /data"),
            ("mkdir -p /image/data", "ln -s x /image/y"),
        ] {
            assert!(parse(&FILE.replace(from, to)).is_err(), "{to}");
        }
    }
}
