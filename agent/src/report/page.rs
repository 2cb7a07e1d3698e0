//! The sections of the page.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use musttls_common::tls::TLS_1_2;

use super::chart::{self, Height};
use super::html::Html;
use super::numbers::{minute, percent};
use super::shares::{Kind, Shares};
use super::{Findings, Use};
use crate::cipher;
use crate::clients::Row;
use crate::config::{Exception, Expiry};
use crate::count::{by_thousands, counted};
use crate::fix;
use crate::history::{Class, Client};
use crate::simulate::Judged;

/// Most rows of a table: more is for programs, and for a browser too much.
const ROWS: usize = 500;
/// Titles of the columns that say who a client is.
const CLIENT: [&str; 5] = ["client", "user", "program", "driver", "server"];
/// Most networks or users of an exception that are shown.
const NAMES: usize = 8;
/// How soon an exception ends that is marked: as `musttls except expiring` has it.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

/// Up to the title. Nothing is loaded and nothing runs, whatever stands in the page.
const HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
    <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
    <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
    <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n<title>musttls report: ";
const STYLE: &str = include_str!("style.css");
/// What the style sheet fills bars with: two kinds have hatches, so that colours are not needed.
const HATCHES: &str = "<svg width=\"0\" height=\"0\" class=\"hatches\" aria-hidden=\"true\" focusable=\"false\"><defs>\
    <pattern id=\"dense\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
    <rect class=\"under-clear\" width=\"4\" height=\"4\"/><rect class=\"over\" width=\"1.4\" height=\"4\"/></pattern>\
    <pattern id=\"wide\" width=\"7\" height=\"7\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(-45)\">\
    <rect class=\"under-excepted\" width=\"7\" height=\"7\"/><rect class=\"over\" width=\"1.4\" height=\"7\"/></pattern>\
    </defs></svg>\n";

/// The whole page.
pub(super) fn render(findings: &Findings<'_>) -> String {
    let mut html = Html::default();
    html.raw(HEAD)
        .text(&findings.facts.host)
        .raw("</title>\n<style>\n")
        .raw(STYLE)
        .raw("</style>\n</head>\n<body>\n")
        .raw(HATCHES);
    head(&mut html, findings);
    html.raw("<main>\n");
    over_time(&mut html, findings);
    versions(&mut html, findings);
    in_the_clear(&mut html, findings);
    exceptions(&mut html, findings);
    refusals(&mut html, findings);
    enforcing(&mut html, findings);
    unknown(&mut html, findings);
    html.raw("</main>\n</body>\n</html>\n");
    html.finish()
}

fn head(html: &mut Html, findings: &Findings<'_>) {
    let facts = findings.facts;
    let Findings {
        shares, simulation, ..
    } = findings;
    html.raw("<header>\n<p class=\"about\">musttls report of <b>")
        .foreign(&facts.host)
        .raw("</b> &middot; ")
        .text(minute(at(findings.from_s)))
        .raw(" to ")
        .text(minute(facts.now))
        .raw(" UTC &middot; made ")
        .text(minute(facts.now))
        .raw(" UTC by musttls ")
        .text(env!("CARGO_PKG_VERSION"))
        .raw(" &middot; policy ")
        .foreign(&facts.policy);
    if let Some(version) = facts.version {
        html.raw(", version ").text(version).raw(", in force");
    }
    html.raw("</p>\n<h1>");
    if shares.let_in() == 0 {
        html.raw("No session over TCP is on record");
    } else {
        html.text(percent(shares.count(Kind::Tls), shares.let_in()))
            .raw(" of the sessions over TCP used TLS");
    }
    html.raw("</h1>\n<p class=\"verdict\">");
    let broken = findings.broken().len();
    if simulation.clients == 0 {
        html.raw("Nobody is on record: whom enforce mode would refuse is <b class=\"bad\">not known</b>.");
    } else if broken == 0 {
        html.raw("<b class=\"good\">Nobody</b> on record would be refused if every server were in enforce mode.");
    } else {
        html.raw("<b class=\"bad\">")
            .text(counted(as_u64(broken), "client", "clients"));
        match simulation.refused.len() {
            0 => html.raw("</b> would be refused if every server were in enforce mode."),
            refused if refused == broken => {
                html.raw("</b> would be refused: the servers are in enforce mode.")
            }
            refused => html
                .raw("</b> would be refused if every server were in enforce mode; ")
                .text(by_thousands(as_u64(refused)))
                .raw(" of them come to servers that are in it."),
        };
    }
    html.raw("</p>\n<dl class=\"sums\">");
    for (name, number) in [
        ("sessions with TLS", shares.count(Kind::Tls)),
        (
            "in plaintext, by an exception",
            shares.count(Kind::Excepted),
        ),
        ("in plaintext, only observed", shares.count(Kind::Clear)),
        ("refused", shares.count(Kind::Refused)),
        (
            "over Unix sockets",
            sum(findings, |class| class == Class::Unix),
        ),
    ] {
        html.raw("<div><dt>")
            .text(name)
            .raw("</dt><dd>")
            .text(by_thousands(number))
            .raw("</dd></div>");
    }
    html.raw("</dl>\n</header>\n");
}

fn over_time(html: &mut Html, findings: &Findings<'_>) {
    let course = &findings.course;
    html.raw("<section>\n<h2>TLS over time</h2>\n<p>Per ")
        .text(course.step.name())
        .raw(", UTC. Above: of the sessions that were let in. Below: how many sessions there were.</p>\n<ul class=\"legend\">");
    for kind in Kind::ALL {
        html.raw("<li><svg viewBox=\"0 0 14 14\" aria-hidden=\"true\"><rect width=\"14\" height=\"14\" class=\"")
            .text(chart::class(kind))
            .raw("\"/></svg>")
            .text(kind.name())
            .raw("</li>");
    }
    html.raw("</ul>\n");
    for height in [Height::Share, Height::Sessions] {
        chart::draw(html, course, height);
        html.raw("\n");
    }
    html.raw("<details><summary>The numbers of both charts</summary>\n");
    let titles = [
        "from (UTC)",
        "TLS",
        "plaintext, excepted",
        "plaintext, observed",
        "refused",
        "share of TLS",
    ];
    let mut table = Table::open(html, "Sessions over time", &titles);
    for (begin_s, shares) in &course.bars {
        table.row(|row| {
            row.cell(|html| html.text(course.step.label(*begin_s)));
            for kind in Kind::ALL {
                row.number(shares.count(kind));
            }
            row.cell(|html| html.text(share(shares)));
        });
    }
    table.close();
    html.raw("</details>\n</section>\n");
}

fn share(shares: &Shares) -> String {
    match shares.let_in() {
        0 => "-".to_owned(),
        all => percent(shares.count(Kind::Tls), all),
    }
}

fn versions(html: &mut Html, findings: &Findings<'_>) {
    html.raw("<section>\n<h2>TLS versions</h2>\n");
    let mut versions: BTreeMap<u16, u64> = BTreeMap::new();
    for tally in &findings.facts.tallies {
        if Kind::of(tally.class, tally.passed) == Some(Kind::Tls) {
            *versions.entry(tally.tls).or_default() += tally.sessions;
        }
    }
    let all: u64 = versions.values().sum();
    if all == 0 {
        html.raw("<p>No session with TLS is on record.</p>\n</section>\n");
        return;
    }
    let mut table = Table::open(
        html,
        "Sessions by version of TLS",
        &["version", "sessions", "share", ""],
    );
    for (version, sessions) in versions.into_iter().rev() {
        table.row(|row| {
            row.cell(|html| {
                match version {
                    0 => html.raw("not known"),
                    version => html.raw("TLS ").text(cipher::version_name(version)),
                };
                if version != 0 && version < TLS_1_2 {
                    html.raw(" <b class=\"bad\">deprecated (RFC 8996)</b>");
                }
                html
            });
            row.number(sessions);
            row.cell(|html| html.text(percent(sessions, all)));
            row.cell(|html| {
                let thousandth = u128::from(sessions) * 1000 / u128::from(all);
                html.raw("<svg class=\"bar\" viewBox=\"0 0 1000 10\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><rect class=\"tls\" height=\"10\" width=\"")
                    .text(thousandth.max(4))
                    .raw("\"/></svg>")
            });
        });
    }
    table.close();
    html.raw("</section>\n");
}

fn in_the_clear(html: &mut Html, findings: &Findings<'_>) {
    let clear = &findings.clear;
    html.raw("<section>\n<h2>Clients in plaintext</h2>\n");
    if clear.is_empty() {
        html.raw("<p>None was seen.</p>\n</section>\n");
        return;
    }
    html.raw("<p>")
        .text(counted(as_u64(clear.len()), "client", "clients"))
        .raw(", the busiest first. What driver and program it is, is what the client itself says.</p>\n");
    let own = ["sessions", "last seen (UTC)", "the last time"];
    let titles = [&CLIENT[..], &own].concat();
    let mut table = Table::open(html, "Clients in plaintext", &titles);
    for row in rows(clear) {
        table.row(|cells| {
            cells.client(&row);
            cells.number(row.sessions);
            cells.cell(|html| html.text(minute(row.last_seen)));
            cells.cell(|html| last_time(html, &row));
        });
    }
    table.close();
    more(html, clear.len());
    html.raw("<h3>How they turn on TLS</h3>\n");
    let mut fixes: BTreeMap<&str, (&str, Use)> = BTreeMap::new();
    for client in clear {
        let fix = fix::of(client);
        let (_, used) = fixes.entry(fix.driver).or_insert((fix.how, Use::default()));
        used.clients += 1;
        used.sessions += client.sessions;
    }
    let mut fixes: Vec<_> = fixes.into_iter().collect();
    fixes.sort_by_key(|(_, (_, used))| std::cmp::Reverse(used.sessions));
    let titles = ["driver", "clients", "sessions", "what to change"];
    let mut table = Table::open(html, "How the drivers that were seen turn on TLS", &titles);
    for (driver, (how, used)) in fixes {
        table.row(|row| {
            row.cell(|html| html.text(driver));
            row.number(used.clients);
            row.number(used.sessions);
            row.cell(|html| html.raw("<span class=\"how\">").text(how).raw("</span>"));
        });
    }
    table.close();
    html.raw("</section>\n");
}

/// What was done about its last session.
fn last_time<'h>(html: &'h mut Html, row: &Row) -> &'h mut Html {
    match (row.last_verdict, &row.last_rule) {
        ("excepted", Some(rule)) => html.raw("passed by ").foreign(rule),
        ("denied", _) => html.raw("refused"),
        ("would_deny", _) => html.raw("passed, only observed"),
        ("kept", _) => html.raw("passed, older than the gate"),
        (other, _) => html.text(other),
    }
}

fn exceptions(html: &mut Html, findings: &Findings<'_>) {
    let exceptions = &findings.facts.config.exceptions;
    html.raw("<section>\n<h2>Exceptions</h2>\n");
    if exceptions.is_empty() {
        html.raw("<p>The policy has none.</p>\n</section>\n");
        return;
    }
    html.raw("<p>Whether one is used, is held against the clients of this report.</p>\n");
    let titles = ["name", "for", "owner", "reason", "ends (UTC)", "used"];
    let mut table = Table::open(html, "Exceptions of the policy", &titles);
    let mut sorted: Vec<&Exception> = exceptions.iter().collect();
    sorted.sort_by_key(|exception| match exception.expires {
        Expiry::At(end) => end,
        Expiry::Never => Timestamp::MAX,
    });
    for exception in sorted.iter().take(ROWS) {
        table.row(|row| {
            row.cell(|html| html.foreign(&exception.name));
            row.cell(|html| whom(html, exception));
            row.cell(|html| html.foreign(&exception.owner));
            row.cell(|html| html.foreign(&exception.reason));
            row.cell(|html| end(html, exception, findings.facts.now));
            row.cell(|html| match findings.used.get(&exception.name) {
                Some(used) => html.text(format_args!(
                    "{}, {}",
                    counted(used.clients, "client", "clients"),
                    counted(used.sessions, "session", "sessions")
                )),
                None => html.raw("<b class=\"bad\">by nobody</b>"),
            });
        });
    }
    table.close();
    more(html, exceptions.len());
    html.raw("</section>\n");
}

fn whom<'h>(html: &'h mut Html, exception: &Exception) -> &'h mut Html {
    let sources: Vec<String> = exception.source.iter().map(ToString::to_string).collect();
    if sources.is_empty() {
        html.raw("this host");
    }
    names(html, &sources);
    if !exception.users.is_empty() {
        html.raw("; user ");
        names(html, &exception.users);
    }
    if let Some(server) = &exception.server {
        html.raw("; server ").foreign(server);
    }
    if exception.conditions.are_some() {
        html.raw("; ").foreign(exception.conditions.to_string());
    }
    html
}

fn names<'h>(html: &'h mut Html, names: &[String]) -> &'h mut Html {
    for (index, name) in names.iter().take(NAMES).enumerate() {
        html.raw(if index == 0 { "" } else { ", " }).foreign(name);
    }
    if let Some(more) = names.len().checked_sub(NAMES + 1) {
        html.raw(" and ")
            .text(by_thousands(as_u64(more + 1)))
            .raw(" more");
    }
    html
}

fn end<'h>(html: &'h mut Html, exception: &Exception, now: Timestamp) -> &'h mut Html {
    if let Some(begin) = exception.not_before.filter(|&begin| begin > now) {
        html.raw("begins ").text(minute(begin)).raw("; ");
    }
    match exception.expires {
        Expiry::Never => html.raw("<b class=\"bad\">never</b>"),
        Expiry::At(end) if end <= now => html.raw("<b class=\"bad\">ended</b> ").text(minute(end)),
        Expiry::At(end) if end.duration_since(now) <= SOON => {
            html.text(minute(end)).raw(" <b class=\"bad\">soon</b>")
        }
        Expiry::At(end) => html.text(minute(end)),
    }
}

fn refusals(html: &mut Html, findings: &Findings<'_>) {
    let refused = &findings.refused;
    html.raw("<section>\n<h2>Refusals</h2>\n<p>")
        .text(counted(
            findings.shares.count(Kind::Refused),
            "session was",
            "sessions were",
        ))
        .raw(" refused in this period.</p>\n");
    if refused.is_empty() {
        html.raw("</section>\n");
        return;
    }
    let own = ["refused", "of sessions", "last seen (UTC)"];
    let titles = [&CLIENT[..], &own].concat();
    let mut table = Table::open(html, "Clients of whom sessions were refused", &titles);
    for row in rows(refused) {
        table.row(|cells| {
            cells.client(&row);
            cells.number(row.refused);
            cells.number(row.sessions);
            cells.cell(|html| html.text(minute(row.last_seen)));
        });
    }
    table.close();
    more(html, refused.len());
    html.raw("</section>\n");
}

fn enforcing(html: &mut Html, findings: &Findings<'_>) {
    let config = findings.facts.config;
    let simulation = &findings.simulation;
    html.raw("<section>\n<h2>What changes when enforcing</h2>\n<p>The policy ")
        .foreign(&findings.facts.policy)
        .raw(", held against ")
        .text(counted(as_u64(simulation.clients), "client", "clients"))
        .raw(" of this period.</p>\n");
    let mut table = Table::open(
        html,
        "Servers and their modes",
        &["server", "mode", "would be refused"],
    );
    let broken = findings.broken();
    for index in config.indices() {
        let name = config.server_name(index);
        let of_it = |judged: &&&Judged| config.server_index(judged.row.port.unwrap_or(0)) == index;
        table.row(|row| {
            row.cell(|html| html.foreign(name));
            row.cell(|html| html.text(config.mode_of(index).as_str()));
            row.number(as_u64(broken.iter().filter(of_it).count()));
        });
    }
    table.close();
    html.raw("<h3>Refused</h3>\n");
    judged(
        html,
        &broken,
        ("Clients that enforce mode would refuse", "why"),
        |html, judged| html.text(judged.why.unwrap_or_default()),
    );
    html.raw("<h3>Let in by an exception</h3>\n");
    let excepted: Vec<&Judged> = simulation.excepted.iter().collect();
    judged(
        html,
        &excepted,
        ("Clients that an exception would let in", "exception"),
        |html, judged| html.foreign(judged.exception.as_deref().unwrap_or_default()),
    );
    html.raw("</section>\n");
}

/// A table of clients and what becomes of them, or a word that there is none.
fn judged(
    html: &mut Html,
    rows: &[&Judged],
    (caption, last): (&'static str, &'static str),
    what: impl for<'h> Fn(&'h mut Html, &Judged) -> &'h mut Html,
) {
    if rows.is_empty() {
        html.raw("<p>Nobody.</p>\n");
        return;
    }
    let titles = [&CLIENT[..], &["sessions", last]].concat();
    let mut table = Table::open(html, caption, &titles);
    for judged in rows.iter().take(ROWS) {
        table.row(|cells| {
            cells.client(&judged.row);
            cells.number(judged.row.sessions);
            cells.cell(|html| what(html, judged));
        });
    }
    table.close();
    more(html, rows.len());
}

fn unknown(html: &mut Html, findings: &Findings<'_>) {
    let facts = findings.facts;
    html.raw(
        "<section>\n<h2>What this does not show</h2>\n<ul>\n<li>Who has not connected between ",
    )
    .text(minute(at(findings.from_s)))
    .raw(" and ")
    .text(minute(facts.now))
    .raw(" UTC.");
    if let Some(first) = facts.tallies.first() {
        html.raw(" The first session on record in it was in the hour from ")
            .text(minute(at(first.begin_s)))
            .raw(" UTC on.");
    }
    html.raw("</li>\n<li>Sessions of a client are all since it was first seen, also where the period begins later; charts and the numbers at the top are of the period.</li>\n");
    let failed = sum(findings, |class| class == Class::TlsFailed);
    if failed > 0 {
        html.raw("<li>")
            .text(counted(failed, "TLS handshake", "TLS handshakes"))
            .raw(" failed, and stand in none of the numbers.</li>\n");
    }
    if !facts.state.holes.is_empty() {
        html.raw("<li><b class=\"bad\">Records are missing in ")
            .text(counted(as_u64(facts.state.holes.len()), "place", "places"))
            .raw("</b> (musttls history): whom they were about is not known.</li>\n");
    }
    if facts.state.forgotten > 0 {
        html.raw("<li>")
            .text(counted(facts.state.forgotten, "client was", "clients were"))
            .raw(" taken out of the history, too old or too many (musttls history).</li>\n");
    }
    html.raw("</ul>\n</section>\n");
}

/// The first of `clients`, as they are shown.
fn rows(clients: &[&Client]) -> impl Iterator<Item = Row> {
    clients.iter().take(ROWS).map(|client| Row::of(client))
}

/// That there is more than a table shows.
fn more(html: &mut Html, rows: usize) {
    if let Some(more) = rows.checked_sub(ROWS).filter(|&more| more > 0) {
        html.raw("<p>And ").text(by_thousands(as_u64(more))).raw(
            " more: musttls clients --json, simulate --json or except list --json has all.</p>\n",
        );
    }
}

/// Sessions of the period of some classes.
fn sum(findings: &Findings<'_>, wanted: impl Fn(Class) -> bool) -> u64 {
    let tallies = findings.facts.tallies.iter();
    tallies
        .filter(|tally| wanted(tally.class))
        .map(|tally| tally.sessions)
        .sum()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn as_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// A table. Where there is no room for its columns, each cell is a line with its title; the roles say then, too, what it is.
struct Table<'h> {
    html: &'h mut Html,
    titles: Vec<&'static str>,
}

impl<'h> Table<'h> {
    fn open(html: &'h mut Html, caption: &'static str, titles: &[&'static str]) -> Self {
        html.raw("<table role=\"table\"><caption>")
            .raw(caption)
            .raw("</caption>\n<thead role=\"rowgroup\"><tr role=\"row\">");
        for &title in titles {
            html.raw("<th role=\"columnheader\" scope=\"col\">")
                .raw(title)
                .raw("</th>");
        }
        html.raw("</tr></thead>\n<tbody role=\"rowgroup\">\n");
        Self {
            html,
            titles: titles.to_vec(),
        }
    }

    fn row(&mut self, cells: impl FnOnce(&mut Cells<'_>)) {
        self.html.raw("<tr role=\"row\">");
        cells(&mut Cells {
            html: self.html,
            titles: self.titles.iter(),
        });
        self.html.raw("</tr>\n");
    }

    fn close(self) {
        self.html.raw("</tbody></table>\n");
    }
}

/// The cells of a row, which are written from the first to the last.
struct Cells<'c> {
    html: &'c mut Html,
    titles: std::slice::Iter<'c, &'static str>,
}

impl Cells<'_> {
    fn cell(&mut self, content: impl FnOnce(&mut Html) -> &mut Html) {
        self.open("<td role=\"cell\" data-title=\"");
        content(self.html);
        self.html.raw("</td>");
    }

    fn number(&mut self, number: u64) {
        self.open("<td role=\"cell\" class=\"number\" data-title=\"");
        self.html.text(by_thousands(number)).raw("</td>");
    }

    fn open(&mut self, markup: &'static str) {
        let title = self.titles.next().copied().unwrap_or_default();
        self.html.raw(markup).raw(title).raw("\">");
    }

    /// The cells of who it is, below the titles of [`CLIENT`].
    fn client(&mut self, row: &Row) {
        self.cell(|html| match (row.client, row.proxied) {
            (Some(peer), Some(proxied)) => html.text(format_args!("{proxied} via {peer}")),
            (Some(peer), None) => html.text(peer),
            (None, _) => html.raw("Unix socket"),
        });
        for text in [&row.user, &row.program] {
            self.cell(|html| match text {
                Some(text) => html.foreign(text),
                None => html.raw("-"),
            });
        }
        self.cell(|html| match (&row.driver, &row.driver_version) {
            (Some(driver), Some(version)) => html.foreign(driver).raw(" ").foreign(version),
            (Some(driver), None) => html.foreign(driver),
            (None, _) => html.raw("-"),
        });
        self.cell(|html| match row.port {
            Some(port) => html.foreign(format_args!("{}:{port}", row.server)),
            None => html.foreign(&row.server),
        });
    }
}
