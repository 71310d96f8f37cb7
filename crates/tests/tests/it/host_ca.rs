//! Steps trust the host's certificates when asked to, and nothing of them stays.

use kiln_tests::{Kiln, Setting, in_each_setting};

in_each_setting! { certificates_are_seen_and_do_not_stay an_update_keeps_them_for_the_step copies_are_told bad_files }

/// A certificate as far as Kiln looks into it: base64 between two lines.
fn certificate(letter: char) -> String {
    let line = letter.to_string().repeat(64);
    let body = format!("{line}\n").repeat(12);
    format!("-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n")
}

/// An image with a bundle and a folder for additions, as Debian's package leaves them.
const BASE: &str = "FROM busybox AS base\nCOPY bundle.pem /etc/ssl/certs/ca-certificates.crt\n\
                    RUN mkdir -p /usr/local/share/ca-certificates\n";

fn context(kiln: &Kiln, steps: &str) -> String {
    kiln.context(&[
        ("Dockerfile", &format!("{BASE}FROM base\n{steps}")),
        ("bundle.pem", &certificate('I')),
        ("host.pem", &format!("# the host's\n{}", certificate('H'))),
    ])
}

/// Files of the image with `text` in them or in their names.
fn holding(kiln: &Kiln, image: &str, text: &str) -> Vec<String> {
    let script = format!(
        "(find / -xdev -name '*{text}*'; grep -rl {text} /etc /usr /var /home /root /else /own.pem /made 2>/dev/null) | sort"
    );
    let found = kiln.run(&["run", "--rm", image, "sh", "-c", &script]).ok();
    found.stdout.lines().map(str::to_owned).collect()
}

fn certificates_are_seen_and_do_not_stay(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = context(
        &kiln,
        "ENV CURL_CA_BUNDLE=/mine JAVA_TOOL_OPTIONS=-Dmine=1\n\
         RUN grep -c BEGIN /etc/ssl/certs/ca-certificates.crt \"$SSL_CERT_FILE\"; grep -q HHHH \"$SSL_CERT_FILE\" || exit 1; \
         echo curl: $CURL_CA_BUNDLE; echo java: $JAVA_TOOL_OPTIONS; grep -c . \"$APT_CONFIG\"; \
         ls /usr/local/share/ca-certificates; head -c 4 /run/kiln/ca/trust.jks | od -tx1\n\
         RUN touch -c /etc/ssl/certs/ca-certificates.crt; echo x > /made\n",
    );
    let host = format!("{context}/host.pem");
    kiln.build(&["--ca-cert", &host, "-t", "trusting", &context])
        .ok()
        .says(&[
            "/etc/ssl/certs/ca-certificates.crt:2",
            "/run/kiln/ca/bundle.pem:2",
            "curl: /mine",
            "java: -Dmine=1 -Djavax.net.ssl.trustStore=/run/kiln/ca/trust.jks",
            "kiln-host-ca-1.crt",
            "fe ed fe ed",
        ])
        .silent_about(&["holds a certificate"]);
    let image = kiln.save("trusting");
    assert_eq!(holding(&kiln, "trusting", "HHHH"), Vec::<String>::new());
    assert_eq!(
        holding(&kiln, "trusting", "kiln-host"),
        Vec::<String>::new()
    );
    let env = image.config["config"]["Env"].to_string();
    assert!(
        !env.contains("kiln") && !env.contains("SSL_CERT_FILE"),
        "{env}"
    );

    // No part of a key: without it, and with another one, nothing is done again.
    let without = kiln.build(&["-t", "plain", &context]).ok();
    assert_eq!(without.executed(), Vec::<String>::new(), "{without}");
    let differences = xtask::compare::image_differences(&image, &kiln.save("plain"));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn an_update_keeps_them_for_the_step(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    // What `update-ca-certificates` does: a new bundle, a link to each addition, and links by hash.
    let context = context(
        &kiln,
        "COPY <<EOF /own.pem\n-----BEGIN CERTIFICATE-----\nT1dO\n-----END CERTIFICATE-----\nEOF\n\
         RUN cd /etc/ssl/certs && cat /own.pem /usr/local/share/ca-certificates/*.crt > new && mv new ca-certificates.crt \
         && ln -s /usr/local/share/ca-certificates/kiln-host-ca-1.crt kiln-host-ca-1.pem && ln -s kiln-host-ca-1.pem 0a1b2c3d.0 \
         && ln -s /own.pem own.pem && grep -c HHHH ca-certificates.crt\n",
    );
    let host = format!("{context}/host.pem");
    let build = kiln
        .build(&["--ca-cert", &host, "-t", "updated", &context])
        .ok();
    build.silent_about(&["holds a certificate"]);
    assert_eq!(holding(&kiln, "updated", "HHHH"), Vec::<String>::new());
    let list = ["run", "--rm", "updated", "ls", "/etc/ssl/certs"];
    let links: Vec<_> = kiln
        .run(&list)
        .ok()
        .stdout
        .lines()
        .map(str::to_owned)
        .collect();
    assert_eq!(links, ["ca-certificates.crt", "own.pem"]);
    assert_eq!(
        holding(&kiln, "updated", "T1dO"),
        [
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/ssl/certs/own.pem",
            "/own.pem"
        ]
    );
}

fn copies_are_told(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    // A link in place of a folder must not lead the cleaning elsewhere.
    let context = context(
        &kiln,
        "RUN mkdir /else && cp /etc/ssl/certs/ca-certificates.crt /else/ && rm -r /etc/ssl/certs && ln -s /else /etc/ssl/certs\n",
    );
    let host = format!("{context}/host.pem");
    let build = kiln
        .build(&["--ca-cert", &host, "-t", "copied", &context])
        .ok();
    build.says(&["/else/ca-certificates.crt holds a certificate of the host"]);
    assert_eq!(
        holding(&kiln, "copied", "HHHH"),
        ["/else/ca-certificates.crt"]
    );
}

fn bad_files(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[
        ("Dockerfile", "FROM busybox\nRUN true\n"),
        ("none.pem", "nothing\n"),
    ]);
    for (file, why) in [("none.pem", "expected PEM"), ("missing.pem", "missing.pem")] {
        let file = format!("{context}/{file}");
        kiln.build(&["--ca-cert", &file, &context])
            .failed()
            .says(&[why]);
    }
}
