//! A compose file, run as processes where there is no container engine: the same commands, environments, volumes,
//! networks and rules, each container a process with a root folder and namespaces of its own.
//!
//! - this file: what a compose file may say here. A key that is not carried out is refused, so nothing that is written
//!   there goes untried.
//! - [`dockerfile`]: what a Dockerfile's last stage says of its image.
//! - `container`: one process with the image's files and its volumes, and nothing else of the machine.
//! - `network`: a bridge without a way out, names by DNS, published ports.
//! - [`project`]: `up`, `stop`, `cp`; dependencies, health checks and restarts.

mod container;
pub mod dockerfile;
mod network;
pub mod project;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// `docker stop` waits so long when the file does not say.
const STOP_GRACE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComposeFile {
    pub name: String,
    pub services: BTreeMap<String, Service>,
    volumes: BTreeMap<String, Option<NoOptions>>,
}

/// A volume's options: there are none here.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub image: String,
    /// The folder with the Dockerfile of the image.
    pub build: Option<String>,
    pub entrypoint: Vec<String>,
    #[serde(default)]
    pub command: Vec<String>,
    pub hostname: Option<String>,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    #[serde(default)]
    pub ports: Vec<Port>,
    pub healthcheck: Option<Healthcheck>,
    #[serde(default)]
    pub depends_on: BTreeMap<String, Dependency>,
    stop_grace_period: Option<Span>,
    pub restart: Option<Restart>,
}

/// `VOLUME:/path`, or `VOLUME:/path:ro`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct VolumeMount {
    pub volume: String,
    pub path: String,
    pub read_only: bool,
}

/// `HOST:CONTAINER`: a port of the machine that leads into the container.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct Port {
    pub host: u16,
    pub container: u16,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Healthcheck {
    /// `CMD`, then the words of the command.
    test: Vec<String>,
    interval: Span,
    timeout: Span,
    retries: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dependency {
    pub condition: Condition,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    ServiceHealthy,
    ServiceCompletedSuccessfully,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    UnlessStopped,
}

/// A time as compose writes it: `35s`, `1m30s`, `500ms`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
struct Span(Duration);

impl ComposeFile {
    /// Reads the text of a compose file, and refuses what would not be carried out.
    pub fn parse(text: &str) -> Result<Self> {
        let interpolated =
            text.lines().find(|line| !line.trim_start().starts_with('#') && line.contains('$'));
        if let Some(line) = interpolated {
            bail!("compose would put a variable in here, and this harness does not: {line}");
        }
        let file: Self = serde_yaml::from_str(text)?;
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<()> {
        let mut published = BTreeSet::new();
        let mut mounted = BTreeSet::new();
        for (name, service) in &self.services {
            for port in &service.ports {
                ensure!(published.insert(port.host), "{name}: port {} is published twice", port.host);
            }
            for mount in &service.volumes {
                ensure!(self.volumes.contains_key(&mount.volume), "{name}: no volume {}", mount.volume);
                mounted.insert(&mount.volume);
            }
            for (on, dependency) in &service.depends_on {
                let on_service = self.services.get(on).with_context(|| format!("{name}: no service {on}"))?;
                match dependency.condition {
                    Condition::ServiceHealthy => {
                        ensure!(on_service.healthcheck.is_some(), "{name}: {on} has no health check")
                    }
                    Condition::ServiceCompletedSuccessfully => {
                        ensure!(on_service.restart.is_none(), "{name}: {on} never ends: it is restarted")
                    }
                }
            }
        }
        let idle: Vec<_> = self.volumes.keys().filter(|name| !mounted.contains(name)).collect();
        ensure!(idle.is_empty(), "no service uses {idle:?}");
        self.in_order().map(drop)
    }

    /// The services, each after those that it depends on.
    pub fn in_order(&self) -> Result<Vec<&str>> {
        let mut order: Vec<&str> = Vec::new();
        while order.len() < self.services.len() {
            let next = self.services.iter().find(|(name, service)| {
                !order.contains(&name.as_str())
                    && service.depends_on.keys().all(|on| order.contains(&on.as_str()))
            });
            let (name, _) = next.context("services depend on each other in a circle")?;
            order.push(name);
        }
        Ok(order)
    }

    pub fn service(&self, name: &str) -> Result<&Service> {
        self.services.get(name).with_context(|| format!("no service {name}"))
    }

    /// Every volume that some service uses.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.volumes.keys().map(String::as_str)
    }
}

impl Service {
    /// What is run, with its arguments.
    pub fn words(&self) -> Vec<String> {
        [self.entrypoint.as_slice(), &self.command].concat()
    }

    /// Between SIGTERM and SIGKILL.
    pub fn stop_grace(&self) -> Duration {
        self.stop_grace_period.map_or(STOP_GRACE, |span| span.0)
    }
}

impl Healthcheck {
    /// The command, with its arguments.
    fn words(&self) -> Result<&[String]> {
        match self.test.split_first() {
            Some((kind, words)) if kind == "CMD" && !words.is_empty() => Ok(words),
            _ => bail!("a health check's test is CMD and words, not {:?}", self.test),
        }
    }
}

impl TryFrom<String> for VolumeMount {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let words: Vec<&str> = text.split(':').collect();
        let (volume, path, read_only) = match words.as_slice() {
            [volume, path] => (*volume, *path, false),
            [volume, path, "ro"] => (*volume, *path, true),
            _ => return Err(format!("{text:?} is not VOLUME:/path or VOLUME:/path:ro")),
        };
        if !path.starts_with('/') || volume.starts_with(['/', '.', '~']) {
            return Err(format!("{text:?} does not mount a named volume at an absolute path"));
        }
        Ok(Self { volume: volume.to_string(), path: path.to_string(), read_only })
    }
}

impl TryFrom<String> for Port {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let ports =
            text.split_once(':').and_then(|(host, inside)| Some((host.parse().ok()?, inside.parse().ok()?)));
        let (host, container) = ports.ok_or_else(|| format!("{text:?} is not HOST:CONTAINER"))?;
        Ok(Self { host, container })
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no time such as 35s or 1m30s");
        let mut rest = text.as_str();
        let mut sum = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, after) = rest.split_at(digits);
            let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
            let (unit, after) = after.split_at(letters);
            let unit = match unit {
                "ms" => Duration::from_millis(1),
                "s" => Duration::from_secs(1),
                "m" => Duration::from_secs(60),
                "h" => Duration::from_secs(3600),
                _ => return Err(wrong()),
            };
            sum += unit * number.parse::<u32>().map_err(|_| wrong())?;
            rest = after;
        }
        Ok(Self(sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
name: one
services:
  first:
    image: a
    entrypoint: [/a]
    volumes: ['data:/data']
  second:
    image: a
    entrypoint: [/a]
    command: [b]
    environment: {NAME: value}
    volumes: ['data:/data:ro']
    ports: ['80:8080']
    stop_grace_period: 1m30s
    depends_on: {first: {condition: service_completed_successfully}}
volumes: {data: }
";

    #[test]
    fn what_is_said_is_understood() {
        let file = ComposeFile::parse(FILE).unwrap();
        assert_eq!(file.in_order().unwrap(), ["first", "second"]);
        let second = file.service("second").unwrap();
        assert_eq!(second.words(), ["/a", "b"]);
        assert_eq!(second.ports, [Port { host: 80, container: 8080 }]);
        assert!(second.volumes[0].read_only);
        assert_eq!(second.stop_grace(), Duration::from_secs(90));
        assert_eq!(file.service("first").unwrap().stop_grace(), STOP_GRACE);
    }

    #[test]
    fn what_would_not_be_carried_out_is_refused() {
        for (from, to) in [
            ("name: one", "name: one\nnetworks: {}"),
            ("    command: [b]", "    command: [b]\n    privileged: true"),
            ("data:/data:ro", "data:/data:rw,z"),
            ("data:/data:ro", "./data:/data"),
            ("data:/data:ro", "other:/data"),
            ("80:8080", "127.0.0.1:80:8080"),
            ("1m30s", "soon"),
            ("{NAME: value}", "{NAME: $VALUE}"),
            ("service_completed_successfully", "service_started"),
            ("service_completed_successfully", "service_healthy"),
            ("{first: {condition", "{third: {condition"),
            ("volumes: {data: }", "volumes: {data: {driver: local}}"),
            ("volumes: {data: }", "volumes: {data: , idle: }"),
        ] {
            assert!(FILE.contains(from), "{from}");
            assert!(ComposeFile::parse(&FILE.replace(from, to)).is_err(), "{to}");
        }
    }
}
