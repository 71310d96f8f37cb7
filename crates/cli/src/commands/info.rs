//! `kiln info` and `kiln version`: where Kiln runs and how, and which one it is.

use std::process::ExitCode;

use anyhow::Result;
use kiln_sandbox::Isolation;
use kiln_template::Value;
use serde_json::json;

use crate::command_line::program;
use crate::context::Place;
use crate::format::{complain, say};
use crate::listing::print_one;

/// The version of docker whose command line this one follows: what scripts that ask docker for a version are told.
const DOCKER: &str = "28.5.2";
/// The same of docker's interface.
const API: &str = "1.51";

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn info(place: &Place, format: Option<&str>) -> Result<ExitCode> {
    let engine = place.engine()?;
    let isolation = match &place.isolation {
        Isolation::Root => "root",
        Isolation::MappedIds { tools: None, .. } => "user namespace with all own ids",
        Isolation::MappedIds { .. } => "user namespace with subordinate ids",
        Isolation::SingleId { .. } => "user namespace with a single id",
    };
    let facts = engine.worker.facts()?;
    let platform = kiln_image::Platform::host();
    let store = place.root.display().to_string();
    let Some(format) = format else {
        say(&format!("Version: {VERSION}"));
        say(&format!("Store: {store}"));
        say(&format!("Isolation: {isolation} ({})", place.reason));
        let (provider, reason) = (&facts.provider, &facts.reason);
        say(&format!("Root file systems: {provider} ({reason})"));
        say(&format!("Platform: {platform}"));
        say(&format!("Processors: {}", crate::context::cores()));
        return Ok(ExitCode::SUCCESS);
    };
    let containers = engine.containers()?;
    let running = containers.iter().filter(|it| it.running).count();
    let uts = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let config = crate::context::proxies();
    let document = json!({
        "ID": "",
        "Containers": containers.len(),
        "ContainersRunning": running,
        "ContainersPaused": 0,
        "ContainersStopped": containers.len() - running,
        "Images": engine.store.images()?.len(),
        "Driver": "kiln",
        "DriverStatus": [["Root file systems", facts.provider], ["Reason", facts.reason]],
        "SystemTime": jiff::Timestamp::now().to_string(),
        "KernelVersion": text(uts.release()),
        "OperatingSystem": crate::context::system_name(),
        "OSType": "linux",
        "Architecture": text(uts.machine()),
        "IndexServerAddress": "https://index.docker.io/v1/",
        "NCPU": crate::context::cores(),
        "MemTotal": rustix::system::sysinfo().totalram,
        "DockerRootDir": store,
        "HttpProxy": config.http.unwrap_or_default(),
        "HttpsProxy": config.https.unwrap_or_default(),
        "NoProxy": config.none.unwrap_or_default(),
        "Name": text(uts.nodename()),
        "Labels": [],
        "ServerVersion": DOCKER,
        "SecurityOptions": security_options(&place.isolation),
        "Isolation": isolation,
        "KilnVersion": VERSION,
        "Warnings": null,
        "ClientInfo": { "Version": DOCKER, "Context": "default", "Plugins": [] },
    });
    print_one(format, &super::inspect::structs(document))?;
    Ok(ExitCode::SUCCESS)
}

/// In docker's words: scripts look for rootless.
fn security_options(isolation: &Isolation) -> Vec<&'static str> {
    let mut options = vec!["name=seccomp,profile=builtin"];
    if !matches!(isolation, Isolation::Root) {
        options.push("name=rootless");
    }
    options
}

/// `--version`, and `kiln version` without a format.
pub(super) fn version_line() -> String {
    if program() == "docker" {
        return format!("Docker version {DOCKER}, build kiln-{VERSION}");
    }
    format!("kiln {VERSION}")
}

pub(super) fn version(format: Option<&str>) -> Result<ExitCode> {
    let arch = kiln_image::Platform::host().architecture;
    let arch = arch.as_str();
    let Some(format) = format else {
        if program() == "docker" {
            say(&format!(
                "Client:\n Version:           {DOCKER}\n API version:       {API}\n OS/Arch:           linux/{arch}\n \
                 Context:           default\n"
            ));
            say(&format!(
                "Server: Kiln\n Engine:\n  Version:          {DOCKER}\n  API version:      {API} (minimum version {API})\n  \
                 OS/Arch:          linux/{arch}\n  Kiln:             {VERSION}"
            ));
            complain("note: this is kiln, with the command line of docker");
        } else {
            say(&version_line());
        }
        return Ok(ExitCode::SUCCESS);
    };
    let common = |value: &mut serde_json::Value| {
        value["Version"] = json!(DOCKER);
        value["ApiVersion"] = json!(API);
        value["GitCommit"] = json!(format!("kiln-{VERSION}"));
        value["GoVersion"] = json!("");
        value["Os"] = json!("linux");
        value["Arch"] = json!(arch);
        value["BuildTime"] = json!("");
    };
    let mut client = json!({ "Platform": { "Name": format!("kiln {VERSION}") } });
    common(&mut client);
    client["DefaultAPIVersion"] = json!(API);
    client["Context"] = json!("default");
    let mut server = json!({ "Platform": { "Name": format!("kiln {VERSION}") } });
    server["Components"] =
        json!([{ "Name": "Engine", "Version": DOCKER }, { "Name": "kiln", "Version": VERSION }]);
    common(&mut server);
    server["MinAPIVersion"] = json!(API);
    server["KernelVersion"] = json!(rustix::system::uname().release().to_string_lossy());
    let both = json!({ "Client": client, "Server": server });
    let mut value: Value = super::inspect::structs(both);
    // Go's name of the field is another one than that in JSON.
    if let Value::Map(fields) = &mut value {
        for side in &mut fields.list {
            if let Value::Map(fields) = &mut side.value {
                fields.hide("APIVersion", API);
            }
        }
    }
    print_one(format, &value)?;
    Ok(ExitCode::SUCCESS)
}
