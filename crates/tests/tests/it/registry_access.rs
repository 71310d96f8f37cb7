//! Registries that speak without TLS, or with certificates that nobody trusts: by configuration, and only then.

use std::path::Path;

use kiln_tests::{Kiln, Outcome, Registry, Setting};

/// Runs `kiln` with a configuration file that says this of a registry.
fn with(kiln: &Kiln, registry: &str, says: &str, args: &[&str]) -> Outcome {
    let file = kiln.file("kiln.toml");
    let text = format!("[registries.\"{registry}\"]\n{says}\n");
    std::fs::write(&file, text).expect("own file");
    let output = kiln.command(args).env("KILN_CONFIG", &file).output();
    let line = format!("[{says}] kiln {}", args.join(" "));
    Outcome::new(line, &output.expect("kiln starts"))
}

#[test]
fn plain_http_is_spoken_where_it_is_configured() {
    let Some(kiln) = Kiln::fresh(Setting::User, &["busybox"]) else {
        return;
    };
    let Some(registry) = Registry::start() else {
        return;
    };
    // An address of this machine that does not look like loopback, with which HTTP is usual.
    let port = registry.name();
    let port = port.rsplit_once(':').expect("a port").1;
    let host = format!("[::ffff:7f00:1]:{port}");
    let image = format!("{host}/app:1");
    kiln.run(&["tag", "busybox", &image]).ok();
    let push = |says: &str| with(&kiln, &host, says, &["push", &image]);
    push("").failed().says(&[&host]);
    push("plain-http = true").ok();
    push("plain-http = false").failed().says(&[&host]);
    push("insecure = true").ok();
    let context = kiln.context(&[("Dockerfile", &format!("FROM {image}\nRUN echo a >/a\n"))]);
    let other = format!("{host}/built");
    let build = ["build", "--push", "--pull", "-t", &other, &context];
    with(&kiln, &host, "plain-http = true", &build).ok();
    with(&kiln, &host, "plain-http = true", &["pull", &other]).ok();
    // Loopback is asked without TLS unless the file says otherwise.
    let name = registry.name();
    let loopback = registry.image("app:1");
    with(&kiln, &name, "", &["pull", &loopback]).ok();
    with(&kiln, &name, "plain-http = false", &["pull", &loopback])
        .failed()
        .says(&[&name]);
}

#[test]
fn a_certificate_that_nobody_trusts_needs_a_word() {
    let Some(kiln) = Kiln::fresh(Setting::User, &["busybox"]) else {
        return;
    };
    let Some(registry) = Registry::with_tls() else {
        return;
    };
    let name = registry.name();
    let image = registry.image("app:1");
    kiln.run(&["tag", "busybox", &image]).ok();
    let push = |says: &str| with(&kiln, &name, says, &["push", &image]);
    let tls = "plain-http = false";
    push(tls).failed().says(&["certificate"]);
    push(&format!("{tls}\ninsecure = true")).ok();
    let copy = kiln.file("certificate.pem");
    std::fs::copy(registry.certificate(), &copy).expect("own file");
    let trusted = |file: &Path| format!("{tls}\ncertificates = [\"{}\"]", file.display());
    push(&trusted(&copy)).ok();
    with(&kiln, &name, &trusted(&copy), &["pull", &image]).ok();
    push(&trusted(&kiln.file("missing.pem")))
        .failed()
        .says(&["missing.pem"]);
}

/// Each key of the file that concerns a registry is a variable, too.
#[test]
fn variables_say_the_same_of_registries() {
    let Some(kiln) = Kiln::fresh(Setting::User, &["busybox"]) else {
        return;
    };
    let (Some(plain), Some(tls)) = (Registry::start(), Registry::with_tls()) else {
        return;
    };
    let push = |variable: &str, value: &str, image: &str| {
        let output = kiln.command(&["push", image]).env(variable, value).output();
        let line = format!("{variable}={value} kiln push {image}");
        Outcome::new(line, &output.expect("kiln starts"))
    };
    let name = plain.name();
    let port = name.rsplit_once(':').expect("a port").1;
    let host = format!("[::ffff:7f00:1]:{port}");
    let image = format!("{host}/app:1");
    kiln.run(&["tag", "busybox", &image]).ok();
    kiln.run(&["push", &image]).failed();
    push(
        "KILN_REGISTRY_PLAIN_HTTP",
        &format!("other, {host}"),
        &image,
    )
    .ok();
    push("KILN_REGISTRY_INSECURE", &host, &image).ok();
    let image = tls.image("app:1");
    kiln.run(&["tag", "busybox", &image]).ok();
    let copy = kiln.file("certificate.pem");
    std::fs::copy(tls.certificate(), &copy).expect("own file");
    let says = |file: &Path| format!("{}={}", tls.name(), file.display());
    let name = "KILN_REGISTRY_CERTIFICATES";
    push(name, &says(&copy), &image).ok();
    push(name, &says(&kiln.file("missing.pem")), &image)
        .failed()
        .says(&[name, "missing.pem"]);
    push(name, "nothing", &image)
        .failed()
        .says(&["KILN_REGISTRY_CERTIFICATES: \"nothing\": expected HOST=FILE"]);
}
