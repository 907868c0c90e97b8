//! The result: numbers for machines ([`Report`] as JSON), a table for people, and for each case what held it back. That
//! is computed from what was measured; nothing here knows the answer beforehand.

use std::fmt::Write;

use serde::Serialize;

use super::{
    GIB, MIB, Measurements, Options, Setup, Size,
    ceilings::Ceilings,
    load::{Direction, Measured},
    restart::Restart,
    usage::{Machine, Usage},
};

/// A resource that is used so much of the time holds everything back.
const SATURATED: f64 = 0.85;
/// More than this of the CPU spent by others: the machine was not quiet.
const NOT_QUIET: f64 = 0.10;
/// Files from here on are judged by their bytes, smaller ones by their number.
const LARGE_FILE: u64 = MIB;

#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub options: Options,
    pub ceilings: Ceilings,
    pub cases: Vec<Case>,
    pub listings: Vec<Listing>,
    pub restart: Option<Restart>,
    /// What makes these numbers worth less.
    pub warnings: Vec<String>,
}

/// A volume listed from its first name to its last one.
#[derive(Debug, Clone, Serialize)]
pub struct Listing {
    pub setup: Setup,
    pub names: u64,
    pub names_per_s: f64,
    pub page_names: u32,
    pub page_p50_ms: f64,
}

/// One row of the table.
#[derive(Debug, Serialize)]
pub struct Case {
    pub setup: Setup,
    pub file_bytes: Size,
    pub direction: &'static str,
    pub streams: usize,
    pub files: u64,
    pub failed: u64,
    pub first_error: Option<String>,
    pub seconds: f64,
    pub mib_per_s: f64,
    pub files_per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub nodes_cpu_s_per_gib: f64,
    pub nodes_cpu_s_per_1000_files: f64,
    pub etcd_cpu_s_per_1000_files: f64,
    pub client_cpu_s_per_gib: f64,
    pub largest_node_peak_bytes: Option<u64>,
    pub usage: Usage,
    /// Of an upload case.
    pub copies: Option<Copies>,
    /// Set by [`Report::new`].
    pub ceiling: Option<Ceiling>,
    pub held_back_by: String,
}

/// Copies of each chunk, when all uploads had been acknowledged.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Copies {
    /// On average.
    pub at_end: f64,
    /// How much later every copy was there; absent if that took too long to wait for.
    pub all_after_s: Option<f64>,
}

/// The lowest limit that the machine, or etcd alone, sets to a case.
#[derive(Debug, Clone, Serialize)]
pub struct Ceiling {
    pub name: &'static str,
    pub mib_per_s: f64,
    pub percent_reached: f64,
}

impl Case {
    pub fn new(
        setup: Setup,
        size: Size,
        direction: Direction,
        streams: usize,
        measured: Measured,
        usage: Usage,
        peak: Option<u64>,
    ) -> Self {
        let gib = (measured.files * size.0) as f64 / GIB as f64;
        let thousands = measured.files as f64 / 1e3;
        let files_per_s = measured.files as f64 / measured.seconds;
        Self {
            setup,
            file_bytes: size,
            direction: direction.word(),
            streams,
            files: measured.files,
            failed: measured.failed,
            first_error: measured.first_error,
            seconds: measured.seconds,
            mib_per_s: files_per_s * size.0 as f64 / MIB as f64,
            files_per_s,
            p50_ms: measured.p50_ms,
            p99_ms: measured.p99_ms,
            nodes_cpu_s_per_gib: usage.nodes_cpu_s / gib,
            nodes_cpu_s_per_1000_files: usage.nodes_cpu_s / thousands,
            etcd_cpu_s_per_1000_files: usage.etcd_cpu_s / thousands,
            client_cpu_s_per_gib: usage.client_cpu_s / gib,
            largest_node_peak_bytes: peak,
            usage,
            copies: None,
            ceiling: None,
            held_back_by: String::new(),
        }
    }

    fn is_upload(&self) -> bool {
        self.direction == "upload"
    }

    fn is_large(&self) -> bool {
        self.file_bytes.0 >= LARGE_FILE
    }

    /// Part of all cores that `cpu_s` was.
    fn share(&self, cpu_s: f64, cores: usize) -> f64 {
        cpu_s / (self.usage.seconds * cores as f64)
    }

    fn lowest_ceiling(&self, ceilings: &Ceilings) -> Option<Ceiling> {
        let mib = self.file_bytes.0 as f64 / MIB as f64;
        let mut limits = vec![("TLS", ceilings.tls.mib_per_s)];
        if self.is_upload() {
            let name = if self.setup.copies() == 1 { "disk" } else { "disk/3" };
            limits.push((name, ceilings.disk.best_mib_per_s() / self.setup.copies() as f64));
        }
        if self.setup == Setup::Cluster {
            let etcd = ceilings.etcd.iter().find(|speed| speed.in_flight == self.streams)?;
            limits.push(match self.is_upload() {
                true => ("etcd creates", etcd.creates_per_s * mib),
                false => ("etcd reads", etcd.reads_per_s * mib),
            });
        }
        let lowest = limits.into_iter().min_by(|a, b| a.1.total_cmp(&b.1));
        lowest.map(|(name, mib_per_s)| Ceiling {
            name,
            mib_per_s,
            percent_reached: 100.0 * self.mib_per_s / mib_per_s,
        })
    }

    /// Which resource was used up, or that none was; with who used the CPU.
    fn judge(&self, cores: usize) -> String {
        let usage = &self.usage;
        let percent = |cpu_s: f64| 100.0 * self.share(cpu_s, cores);
        let stolen = match percent(usage.stolen_cpu_s) {
            part if part >= 1.0 => format!(", stolen {part:.0}"),
            _ => String::new(),
        };
        let who = format!(
            "nodes {:.0}, client {:.0}, etcd {:.0}, kernel {:.0}, other {:.0}{stolen}",
            percent(usage.nodes_cpu_s),
            percent(usage.client_cpu_s),
            percent(usage.etcd_cpu_s),
            percent(usage.kernel_cpu_s),
            percent(usage.other_cpu_s),
        );
        let cpu = self.cpu_share(cores);
        let disk = usage.disk_busy.unwrap_or(0.0);
        let what = match (cpu >= SATURATED, disk >= SATURATED) {
            (true, _) if self.noise(cores) > NOT_QUIET => "CPU, much of it taken by others",
            (true, true) => "CPU and disk",
            (true, false) => "CPU",
            (false, true) => "disk",
            (false, false) => "waiting for answers",
        };
        let disk =
            usage.disk_busy.map_or("disk unknown".into(), |busy| format!("disk {:.0} %", busy * 100.0));
        format!("{what}: CPU {:.0} % of {cores} cores ({who}); {disk}", cpu * 100.0)
    }

    /// How much was written, and what was still on its way when the last upload was acknowledged.
    fn aftermath(&self) -> String {
        let mut text = String::new();
        if let (true, Some(written)) = (self.is_upload(), self.usage.disk_written_bytes) {
            let content = (self.files * self.file_bytes.0) as f64;
            let _ =
                write!(text, "; the disk wrote {:.1} bytes for each of content", written as f64 / content);
        }
        if let Some(copies) = &self.copies {
            let _ = write!(
                text,
                "; {:.2} of {} copies were there at the end",
                copies.at_end,
                self.setup.copies()
            );
            let _ = match copies.all_after_s {
                Some(after) => write!(text, ", all {after:.1} s later"),
                None => write!(text, ", and some were left to repair"),
            };
        }
        text
    }

    /// Part of the CPU that neither nodes, etcd, clients nor the kernel had.
    fn noise(&self, cores: usize) -> f64 {
        self.share(self.usage.other_cpu_s + self.usage.stolen_cpu_s, cores)
    }

    fn cpu_share(&self, cores: usize) -> f64 {
        let usage = &self.usage;
        let ours = usage.nodes_cpu_s + usage.etcd_cpu_s + usage.client_cpu_s + usage.kernel_cpu_s;
        self.share(ours + usage.other_cpu_s + usage.stolen_cpu_s, cores)
    }

    /// How much of the nodes' CPU time, or of a small file's time, the ceilings explain.
    fn explain(&self, ceilings: &Ceilings) -> Option<String> {
        if self.is_large() {
            return Some(self.explain_cpu(ceilings));
        }
        if self.setup == Setup::Alone {
            let (disk, p50) = (ceilings.disk.small_p50_ms, self.p50_ms);
            return self.is_upload().then(|| {
                format!(
                    "with nothing else running, the durable write of a chunk and that of its record ({disk:.1} ms each) take \
                     {:.1} of the p50's {p50:.1} ms",
                    2.0 * disk
                )
            });
        }
        let etcd = ceilings.etcd.iter().find(|speed| speed.in_flight == self.streams)?;
        let ms = |rate: f64| 1e3 * self.streams as f64 / rate;
        let read = ms(etcd.reads_per_s);
        let p50 = self.p50_ms;
        if !self.is_upload() {
            return Some(format!(
                "an etcd read with nothing else running takes {read:.1} of the p50's {p50:.1} ms"
            ));
        }
        let (create, disk) = (ms(etcd.creates_per_s), ceilings.disk.small_p50_ms);
        Some(format!(
            "with nothing else running, an etcd read ({read:.1} ms), an etcd create ({create:.1}) and a durable write \
             ({disk:.1}) take {:.1} of the p50's {p50:.1} ms",
            read + create + disk
        ))
    }

    /// A gateway holds a chunk itself as often as a node holds one; all other copies cross TLS once more.
    fn explain_cpu(&self, ceilings: &Ceilings) -> String {
        let tls = &ceilings.tls;
        let hop = tls.sender_cpu_s_per_gib + tls.receiver_cpu_s_per_gib;
        let copies = self.setup.copies() as f64;
        let at_home = copies / self.setup.nodes() as f64;
        let (way, hops) = match self.is_upload() {
            true => (tls.receiver_cpu_s_per_gib, copies - at_home),
            false => (tls.sender_cpu_s_per_gib, 1.0 - at_home),
        };
        let tls = way + hops * hop;
        let sealing = 1024.0 / ceilings.sealing_mib_per_s;
        let rest = self.nodes_cpu_s_per_gib - tls - sealing;
        format!(
            "of the nodes' {:.1} CPU-s/GiB ({:.0} % in system calls), TLS (one way to the client, {hops:.2} between \
             nodes) explains {tls:.1}, sealing {sealing:.1}; {rest:.1} is gRPC, digests, copying and disk",
            self.nodes_cpu_s_per_gib,
            100.0 * self.usage.nodes_system_cpu_s / self.usage.nodes_cpu_s
        )
    }
}

impl Report {
    pub fn new(options: Options, machine: Machine, ceilings: Ceilings, measured: Measurements) -> Self {
        let Measurements { mut cases, listings, restart } = measured;
        let mut warnings = Vec::new();
        if !machine.optimised {
            warnings.push("this build is not optimised: use `make bench`".to_owned());
        }
        for case in &mut cases {
            case.ceiling = case.lowest_ceiling(&ceilings);
            let judged = case.judge(machine.cores);
            let explained = case.explain(&ceilings).map(|text| format!("; {text}")).unwrap_or_default();
            case.held_back_by = judged + &case.aftermath() + &explained;
        }
        let noisiest = cases.iter().map(|case| case.noise(machine.cores)).fold(0.0, f64::max);
        if noisiest > NOT_QUIET {
            warnings.push(format!(
                "the machine was not quiet: up to {:.0} % of its CPU went to other programs",
                noisiest * 100.0
            ));
        }
        let failed: u64 = cases.iter().map(|case| case.failed).sum();
        if failed > 0 {
            let first = cases.iter().find_map(|case| case.first_error.clone()).unwrap_or_default();
            warnings.push(format!("{failed} transfers failed and are not counted; the first: {first}"));
        }
        Self { machine, options, ceilings, cases, listings, restart, warnings }
    }

    /// The report for people, at most 120 columns wide.
    pub fn text(&self) -> String {
        let mut text = self.header();
        for setup in &self.options.setups {
            let _ = writeln!(text, "\n{}", setup.describe());
            self.tables(*setup, &mut text);
        }
        text.push('\n');
        for warning in &self.warnings {
            text.push_str(&wrapped("WARNING", warning));
        }
        text
    }

    /// A table for each size of files.
    fn tables(&self, setup: Setup, text: &mut String) {
        for size in &self.options.files {
            let large = size.0 >= LARGE_FILE;
            let (unit, more) = match large {
                true => ("a GiB", String::new()),
                false => ("1,000 files; of the nodes also for a GiB", format!(" {:>9}", "nodes/GiB")),
            };
            let _ = writeln!(text, "\n{size} files; CPU in seconds for {unit}");
            let _ = writeln!(
                text,
                "{:<9} {:>7} {:>9} {:>9} {:>18} {:>9} {:>9} {:>7} {:>7} {:>7} {:>9}{more}",
                "",
                "streams",
                "MiB/s",
                "files/s",
                "of ceiling",
                "p50 ms",
                "p99 ms",
                "nodes",
                "etcd",
                "client",
                "peak MiB"
            );
            let cases = || self.cases.iter().filter(|case| case.setup == setup && case.file_bytes == *size);
            for case in cases() {
                text.push_str(&row(case));
            }
            text.push_str("what held it back:\n");
            for case in cases() {
                let label = format!("{} {}", case.direction, case.streams);
                text.push_str(&wrapped(&label, &case.held_back_by));
            }
        }
        for Listing { names, names_per_s, page_names, page_p50_ms, .. } in
            self.listings.iter().filter(|listing| listing.setup == setup)
        {
            let _ = writeln!(
                text,
                "\nlisting {names} names: {names_per_s:.0} names/s; a page of {page_names} takes {page_p50_ms:.1} ms (p50)"
            );
        }
    }

    fn header(&self) -> String {
        let Machine { measured_at, cores, processor, memory_bytes, kernel, disk, .. } = &self.machine;
        let (tls, disks) = (&self.ceilings.tls, &self.ceilings.disk);
        let memory = *memory_bytes as f64 / GIB as f64;
        let mut text = format!(
            "\nCairn on one machine, {measured_at}: {cores} cores ({processor}), {memory:.0} GiB, {disk}, \
             Linux {kernel}\n\
             TLS, clients on the same machine. An upload is acknowledged when a majority of the copies is durable (2 of\n\
             3) and the record is committed; the third follows at once. Downloads come from the page cache. {} s a case.\n\nceilings\n",
            self.options.seconds
        );
        let mut line = |what: &str, value: String| _ = writeln!(text, "  {what:<26} {value}");
        line(
            "bare TLS stream",
            format!(
                "{:.0} MiB/s, {} at a time; CPU-s/GiB {:.2} to send, {:.2} to receive; round trip {:.3} ms",
                tls.mib_per_s,
                tls.streams,
                tls.sender_cpu_s_per_gib,
                tls.receiver_cpu_s_per_gib,
                tls.round_trip_p50_ms
            ),
        );
        line(
            "durable writes",
            format!(
                "{:.0} MiB/s synced each 4 MiB, {:.0} each 32 MiB, {:.0} with {} writers; 4 KiB {:.2} ms",
                disks.each_mib_per_s,
                disks.grouped_mib_per_s,
                disks.writers_mib_per_s,
                Setup::Cluster.nodes(),
                disks.small_p50_ms
            ),
        );
        line("sealing, one core", format!("{:.0} MiB/s", self.ceilings.sealing_mib_per_s));
        for etcd in &self.ceilings.etcd {
            let speeds = format!("{:.0} creates/s, {:.0} reads/s", etcd.creates_per_s, etcd.reads_per_s);
            line(&format!("etcd alone, {} in flight", etcd.in_flight), speeds);
        }
        if let Some(restart) = &self.restart {
            text.push_str(&restarted(restart));
        }
        text
    }
}

fn restarted(restart: &Restart) -> String {
    let Restart { chunks, chunk_bytes, stored_per_s, index_bytes_per_chunk, open_s, .. } = restart;
    format!(
        "\na store with {chunks} chunks of {chunk_bytes} bytes\n  {stored_per_s:.0} stored/s by one process, sealed and \
         durable; {index_bytes_per_chunk:.1} bytes of memory for each\n  opened again in {open_s:.2} s; in {:.2} s without \
         hints (of {} segments, {} had one)\n",
        restart.open_without_hints_s, restart.segments, restart.hints
    )
}

fn row(case: &Case) -> String {
    let per = match case.is_large() {
        true => (case.files * case.file_bytes.0) as f64 / GIB as f64,
        false => case.files as f64 / 1e3,
    };
    let ceiling = case
        .ceiling
        .as_ref()
        .map_or("-".to_owned(), |ceiling| format!("{:.0} % {}", ceiling.percent_reached, ceiling.name));
    let peak = case.largest_node_peak_bytes.map_or("-".to_owned(), |bytes| (bytes / MIB).to_string());
    // Of large files it is the column of the nodes already.
    let more = if case.is_large() { String::new() } else { format!(" {:>9.1}", case.nodes_cpu_s_per_gib) };
    format!(
        "{:<9} {:>7} {:>9.1} {:>9.1} {:>18} {:>9.1} {:>9.1} {:>7.2} {:>7.2} {:>7.2} {:>9}{more}\n",
        case.direction,
        case.streams,
        case.mib_per_s,
        case.files_per_s,
        ceiling,
        case.p50_ms,
        case.p99_ms,
        case.usage.nodes_cpu_s / per,
        case.usage.etcd_cpu_s / per,
        case.usage.client_cpu_s / per,
        peak
    )
}

/// `label  words…`, the words broken before column 118 and indented.
fn wrapped(label: &str, words: &str) -> String {
    const INDENT: usize = 16;
    const WIDTH: usize = 118;
    let mut text = format!("  {label:<width$}", width = INDENT - 2);
    let mut column = INDENT;
    // A per cent sign stays with its number.
    let words = words.replace(" %", "\u{a0}%");
    for (index, word) in words.split(' ').enumerate() {
        let word = word.replace('\u{a0}', " ");
        if index > 0 && column + 1 + word.len() > WIDTH {
            let _ = write!(text, "\n{:INDENT$}", "");
            column = INDENT;
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(&word);
        column += word.len();
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::ceilings::{DiskSpeed, EtcdSpeed, Tls};

    fn case(direction: Direction, file_bytes: u64, usage: Usage) -> Case {
        case_of(Setup::Cluster, direction, file_bytes, usage)
    }

    fn case_of(setup: Setup, direction: Direction, file_bytes: u64, usage: Usage) -> Case {
        let measured =
            Measured { files: 100, seconds: 10.0, p50_ms: 5.0, p99_ms: 9.0, ..Measured::default() };
        Case::new(setup, Size(file_bytes), direction, 8, measured, usage, Some(64 * MIB))
    }

    fn usage(nodes: f64, client: f64, disk_busy: f64) -> Usage {
        Usage {
            seconds: 10.0,
            nodes_cpu_s: nodes,
            nodes_system_cpu_s: nodes / 2.0,
            etcd_cpu_s: 0.5,
            client_cpu_s: client,
            kernel_cpu_s: 0.1,
            other_cpu_s: 0.1,
            stolen_cpu_s: 0.0,
            disk_busy: Some(disk_busy),
            disk_written_bytes: Some(3000 * MIB),
        }
    }

    fn report(cases: Vec<Case>) -> Report {
        let ceilings = Ceilings {
            tls: Tls { streams: 1, mib_per_s: 1000.0, sender_cpu_s_per_gib: 0.5, ..Tls::default() },
            disk: DiskSpeed { each_mib_per_s: 300.0, grouped_mib_per_s: 450.0, ..DiskSpeed::default() },
            sealing_mib_per_s: 5000.0,
            etcd: vec![EtcdSpeed { in_flight: 8, creates_per_s: 1000.0, reads_per_s: 4000.0 }],
        };
        let mut machine = crate::bench::usage::machine(std::path::Path::new("."));
        (machine.cores, machine.optimised) = (2, true);
        let options = Options {
            seconds: 10,
            files: vec![Size(10 * MIB), Size(4096)],
            streams: vec![8],
            setups: vec![Setup::Cluster, Setup::Alone],
            chunks: 5,
        };
        let listing =
            |setup| Listing { setup, names: 20_000, names_per_s: 4e5, page_names: 1_000, page_p50_ms: 2.0 };
        let restart = Restart {
            chunks: 5,
            chunk_bytes: 2_048,
            stored_per_s: 1e4,
            index_bytes_per_chunk: 43.0,
            open_s: 1.0,
            open_without_hints_s: 4.0,
            segments: 9,
            hints: 8,
        };
        let listings = options.setups.iter().copied().map(listing).collect();
        Report::new(options, machine, ceilings, Measurements { cases, listings, restart: Some(restart) })
    }

    #[test]
    fn what_is_used_up_is_named() {
        let upload = Direction::Upload { most_files: 1 };
        let judged = |nodes, client, disk| {
            let report = report(vec![case(upload, 10 * MIB, usage(nodes, client, disk))]);
            report.cases[0].held_back_by.split(':').next().unwrap().to_owned()
        };
        assert_eq!(judged(12.0, 7.0, 0.3), "CPU");
        assert_eq!(judged(2.0, 1.0, 0.95), "disk");
        assert_eq!(judged(12.0, 7.0, 0.95), "CPU and disk");
        assert_eq!(judged(2.0, 1.0, 0.3), "waiting for answers");
    }

    #[test]
    fn the_lowest_ceiling_counts() {
        let (up, down) = (Direction::Upload { most_files: 1 }, Direction::Download { files: 1 });
        let cases = [(up, 10 * MIB), (down, 10 * MIB), (up, 4096), (down, 4096)];
        let cases = cases.map(|(direction, size)| case(direction, size, usage(1.0, 1.0, 0.1)));
        let report = report(cases.into());
        let found: Vec<_> = report.cases.iter().map(|case| case.ceiling.clone().unwrap()).collect();
        let names: Vec<_> = found.iter().map(|ceiling| ceiling.name).collect();
        assert_eq!(names, ["disk/3", "TLS", "etcd creates", "etcd reads"]);
        // 100 files of 10 MiB in 10 s; 450 MiB/s for three copies.
        assert_eq!((found[0].mib_per_s, found[0].percent_reached.round()), (150.0, 67.0));
    }

    /// Nothing of a node alone is compared with etcd, and it has no copies to make.
    #[test]
    fn a_node_alone_has_limits_of_its_own() {
        let (up, down) = (Direction::Upload { most_files: 1 }, Direction::Download { files: 1 });
        let cases = [(up, 10 * MIB), (down, 10 * MIB), (up, 4096), (down, 4096)];
        let of = |(direction, size)| case_of(Setup::Alone, direction, size, usage(1.0, 1.0, 0.1));
        let report = report(cases.map(of).into());
        let found: Vec<_> = report.cases.iter().map(|case| case.ceiling.clone().unwrap()).collect();
        let names: Vec<_> = found.iter().map(|ceiling| ceiling.name).collect();
        assert_eq!(names, ["disk", "TLS", "disk", "TLS"]);
        assert_eq!(found[0].mib_per_s, 450.0);
        let told = &report.cases[0].held_back_by;
        assert!(told.contains("0.00 between nodes"), "{told}");
        let text = report.text();
        let (cluster, alone) = text.split_once(Setup::Alone.describe()).unwrap();
        assert_eq!((rows(cluster).len(), rows(alone).len()), (0, 4), "{text}");
        assert!(cluster.contains("43.0 bytes of memory") && alone.contains("listing 20000 names"), "{text}");
    }

    /// Each row of the table: the size it stands under, then column → value.
    fn rows(text: &str) -> Vec<(String, BTreeMap<String, String>)> {
        let mut rows = Vec::new();
        let (mut size, mut columns) = (String::new(), Vec::new());
        for line in text.lines() {
            if let Some((title, _)) = line.split_once(" files; CPU") {
                size = title.to_owned();
            }
            // Names and values of several words are kept together.
            let line = ["of ceiling", "p50 ms", "p99 ms", "peak MiB", "etcd creates", "etcd reads", " % "]
                .iter()
                .fold(line.to_owned(), |line, name| line.replace(name, &name.replace(' ', "_")));
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            if words.first().is_some_and(|word| word == "streams") {
                columns = words;
            } else if line.starts_with("upload") || line.starts_with("download") {
                rows.push((size.clone(), columns.iter().cloned().zip(words[1..].to_vec()).collect()));
            }
        }
        rows
    }

    #[test]
    fn every_row_has_the_nodes_cpu_for_a_gib() {
        let (up, down) = (Direction::Upload { most_files: 1 }, Direction::Download { files: 1 });
        let cases = [(up, 10 * MIB), (down, 10 * MIB), (up, 4096), (down, 4096)];
        let report =
            report(cases.map(|(direction, size)| case(direction, size, usage(2.0, 1.0, 0.1))).into());
        let text = report.text();
        let rows = rows(&text);
        let of = |size: &str, column: &str| -> Vec<&str> {
            let of_size = rows.iter().filter(|(of, _)| of == size);
            of_size.map(|(_, row)| row.get(column).map_or("-", String::as_str)).collect()
        };
        // 100 files for 2 s: of 1,000 MiB, and of 400 KiB.
        assert_eq!(of("10 MiB", "nodes"), ["2.05", "2.05"], "{text}");
        assert_eq!(of("4 KiB", "nodes"), ["20.00", "20.00"], "{text}");
        assert_eq!(of("4 KiB", "nodes/GiB"), ["5242.9", "5242.9"], "{text}");
        for column in ["MiB/s", "p50_ms", "p99_ms", "peak_MiB"] {
            for size in ["10 MiB", "4 KiB"] {
                let values = of(size, column);
                let numbers = values.iter().filter(|value| value.parse::<f64>().is_ok()).count();
                assert_eq!(numbers, 2, "{column} of {size}: {values:?}\n{text}");
            }
        }
        let widest = text.lines().skip(2).map(|line| line.chars().count()).max();
        assert!(widest <= Some(120), "{text}");
    }

    #[test]
    fn the_text_fits_120_columns_and_warns() {
        let mut noisy = usage(1.0, 1.0, 0.1);
        noisy.other_cpu_s = 8.0;
        let report = report(vec![case(Direction::Upload { most_files: 1 }, 10 * MIB, noisy)]);
        let text = report.text();
        assert!(text.contains("WARNING") && text.contains("not quiet"), "{text}");
        let widest = text.lines().skip(2).map(|line| line.chars().count()).max();
        assert!(widest <= Some(120), "{text}");
    }
}
