//! What is said of Dockerfiles instead of building them, and how errors and warnings reach programs.

use kiln_tests::{Kiln, Outcome, Setting};
use serde_json::Value;

fn kiln() -> Option<&'static Kiln> {
    Kiln::shared(Setting::Root, &["busybox"])
}

#[track_caller]
fn code(outcome: Outcome, wanted: i32) -> Outcome {
    assert_eq!(outcome.status.code(), Some(wanted), "{outcome}");
    outcome
}

#[test]
fn check_as_text() {
    let Some(kiln) = kiln() else { return };
    let context = kiln.context(&[(
        "Dockerfile",
        "FROM busybox\nLABEL a=b\nCMD a\nMAINTAINER x\n",
    )]);
    let found = code(kiln.run(&["build", "--check", &context]), 1);
    let wanted = format!(
        "Check complete, 2 warnings have been found!

WARNING: JSONArgsRecommended - https://docs.docker.com/go/dockerfile/rule/json-args-recommended/
JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
{context}/Dockerfile:3
--------------------
   1 |     FROM busybox
   2 |     LABEL a=b
   3 | >>> CMD a
   4 |     MAINTAINER x
   5 |     
--------------------

WARNING: MaintainerDeprecated - https://docs.docker.com/go/dockerfile/rule/maintainer-deprecated/
Maintainer instruction is deprecated in favor of using label
{context}/Dockerfile:4
--------------------
   2 |     LABEL a=b
   3 |     CMD a
   4 | >>> MAINTAINER x
   5 |     
--------------------
"
    );
    assert_eq!(found.stdout, wanted);
    assert_eq!(found.stderr, "");
    let context = kiln.context(&[("Dockerfile", "FROM busybox\nRUN x\n")]);
    let clean = code(kiln.run(&["build", "--call=check", &context]), 0);
    assert_eq!(clean.stdout, "Check complete, no warnings found.\n");
    // What stands in the way of a build comes with what was found before it.
    let context = kiln.context(&[("Dockerfile", "FROM busybox\nMAINTAINER x\nRUM x\n")]);
    let failed = code(kiln.run(&["build", "--check", &context]), 1);
    assert!(
        failed.stdout.contains("1 warning has been found"),
        "{failed}"
    );
    failed.says(&[
        "ERROR: dockerfile parse error on line 3: unknown instruction: RUM (did you mean RUN?)",
        "^^^",
    ]);
    kiln.leaves_nothing();
}

#[test]
fn check_as_json() {
    let Some(kiln) = kiln() else { return };
    let text = "FROM busybox\nCMD a \\\n b\n";
    let context = kiln.context(&[("Dockerfile", text)]);
    let found = code(
        kiln.run(&["build", "--call=check,format=json", &context]),
        1,
    );
    let range = |line: u32| {
        format!(
            "          {{
            \"start\": {{
              \"line\": {line}
            }},
            \"end\": {{
              \"line\": {line}
            }}
          }}"
        )
    };
    let wanted = format!(
        "{{
  \"warnings\": [
    {{
      \"ruleName\": \"JSONArgsRecommended\",
      \"description\": \"JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals\",
      \"url\": \"https://docs.docker.com/go/dockerfile/rule/json-args-recommended/\",
      \"detail\": \"JSON arguments recommended for CMD to prevent unintended behavior related to OS signals\",
      \"location\": {{
        \"ranges\": [
{},
{}
        ]
      }}
    }}
  ],
  \"sources\": [
    {{
      \"filename\": \"Dockerfile\",
      \"data\": \"RlJPTSBidXN5Ym94CkNNRCBhIFwKIGIK\",
      \"language\": \"Dockerfile\"
    }}
  ]
}}
",
        range(2),
        range(3)
    );
    assert_eq!(found.stdout, wanted);
    // Kiln's own findings have a place of their own and fail nothing.
    let context = kiln.context(&[("Dockerfile", "FROM busybox\nCOPY . .\nRUN npm ci\n")]);
    let own = code(
        kiln.run(&["build", "--call=check,format=json", &context]),
        0,
    );
    let document: Value = serde_json::from_str(&own.stdout).expect("JSON");
    assert_eq!(document["warnings"], Value::Null);
    assert_eq!(
        document["kiln"]["warnings"][0]["ruleName"],
        "KilnCopyBeforeInstall"
    );
}

/// The parts of SARIF 2.1.0 that its readers need.
#[test]
fn check_as_sarif() {
    let Some(kiln) = kiln() else { return };
    let text = "FROM busybox\nCMD a\nCOPY . .\nRUN npm ci\nCOPY --form=x a b\n";
    let context = kiln.context(&[("Dockerfile", text)]);
    let found = code(
        kiln.run(&["build", "--call=check,format=sarif", &context]),
        1,
    );
    let document: Value = serde_json::from_str(&found.stdout).expect("JSON");
    assert_eq!(document["version"], "2.1.0");
    assert_eq!(
        document["$schema"],
        "https://json.schemastore.org/sarif-2.1.0.json"
    );
    let error = &document["runs"][0]["results"][0];
    let region = &error["locations"][0]["physicalLocation"]["region"];
    assert_eq!(error["level"], "error");
    assert_eq!(
        [
            &region["startLine"],
            &region["startColumn"],
            &region["endLine"],
            &region["endColumn"]
        ],
        [5, 6, 5, 12]
    );

    let context = kiln.context(&[("Dockerfile", &text.replace("--form=x ", ""))]);
    let found = code(
        kiln.run(&["build", "--call=check,format=sarif", &context]),
        1,
    );
    let document: Value = serde_json::from_str(&found.stdout).expect("JSON");
    let run = &document["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().expect("a list");
    assert_eq!(run["tool"]["driver"]["name"], "kiln");
    let mut seen = Vec::new();
    for result in run["results"].as_array().expect("a list") {
        let index = result["ruleIndex"].as_u64().expect("a number") as usize;
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert!(result["message"]["text"].is_string());
        let place = &result["locations"][0]["physicalLocation"];
        assert!(
            place["artifactLocation"]["uri"]
                .as_str()
                .expect("a text")
                .ends_with("/Dockerfile")
        );
        assert!(place["region"]["startLine"].as_u64().expect("a number") > 0);
        seen.push((
            result["ruleId"].as_str().expect("a text"),
            result["level"].as_str().expect("a text"),
        ));
    }
    assert_eq!(
        seen,
        [
            ("JSONArgsRecommended", "warning"),
            ("KilnCopyBeforeInstall", "note")
        ]
    );
    kiln.run(&["build", "--call=targets,format=sarif", &context])
        .failed()
        .says(&["SARIF"]);
}

#[test]
fn outline_and_targets() {
    let Some(kiln) = kiln() else { return };
    let text = "\
# VERSION of the tool
ARG VERSION=1.0
# build compiles
FROM busybox:${VERSION:+latest} AS build
ARG MODE=fast
ARG VERSION
RUN --mount=type=secret,id=npm,required=true --mount=type=ssh true
FROM scratch
FROM busybox AS release
# PORT it listens on
ARG PORT
COPY --from=build / /
";
    let context = kiln.context(&[("Dockerfile", text)]);
    let outline = code(kiln.run(&["build", "--call=outline", &context]), 0);
    let wanted = "\
TARGET: release

BUILD ARG   VALUE   DESCRIPTION
VERSION     1.0     of the tool
MODE        fast    
PORT                it listens on

SECRET   REQUIRED
npm      true

SSH       REQUIRED
default   

";
    assert_eq!(outline.stdout, wanted);
    let targets = code(kiln.run(&["build", "--call=targets", &context]), 0);
    let wanted = "\
TARGET            DESCRIPTION
build             compiles
                  
release (default) 
";
    assert_eq!(targets.stdout, wanted);
    let json = code(
        kiln.run(&[
            "build",
            "--call=outline,format=json",
            "--target=build",
            &context,
        ]),
        0,
    );
    let document: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(document["description"], "compiles");
    assert_eq!(document["args"][1]["name"], "MODE");
    assert_eq!(document["secrets"][0]["required"], true);
    let json = code(
        kiln.run(&["build", "--call=targets,format=json", &context]),
        0,
    );
    let document: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(document["targets"][2]["default"], true);
    assert_eq!(document["targets"][0]["base"], "busybox:${VERSION:+latest}");
    kiln.run(&["build", "--call=outlin", &context])
        .failed()
        .says(&["did you mean outline?"]);
    code(
        kiln.run(&["build", "--call=subrequests.describe", &context]),
        0,
    )
    .says(&["frontend", "outline"].map(|_| "outline"));
}

/// Without the base, and without a registry that answers, a check still checks.
#[test]
fn check_without_the_base() {
    let Some(kiln) = kiln() else { return };
    let context = kiln.context(&[(
        "Dockerfile",
        "FROM localhost:1/none\nENV a=$FROM_BASE\nCMD a\n",
    )]);
    let found = code(kiln.run(&["build", "--check", &context]), 1);
    assert!(found.stdout.contains("1 warning has been found"), "{found}");
    found.says(&[
        "note: nothing is known of localhost:1/none",
        "JSONArgsRecommended",
    ]);
}

#[test]
fn warnings_of_builds() {
    let Some(kiln) = kiln() else { return };
    let context = kiln.context(&[("Dockerfile", "FROM busybox\nENV API_TOKEN=1\nCMD a\n")]);
    kiln.build(&["--build-arg", "NO=1", &context]).ok().says(&[
        " 3 warnings found:",
        " - SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV \"API_TOKEN\") (line 2)",
        " - KilnUnusedBuildArg: Build argument 'NO' is declared by no ARG instruction (line 1)",
    ]);
    kiln.build(&[
        "--build-arg",
        "BUILDKIT_DOCKERFILE_CHECK=error=true",
        &context,
    ])
    .failed()
    .says(&["lint violation found for rules: SecretsUsedInArgOrEnv, JSONArgsRecommended"]);
    kiln.build(&[
        "--build-arg",
        "BUILDKIT_DOCKERFILE_CHECK=skip=all;error=true",
        &context,
    ])
    .ok()
    .silent_about(&["warning"]);
    // They are listed also when the build fails.
    let context = kiln.context(&[
        ("Dockerfile", "FROM busybox\nMAINTAINER x\nCOPY main.rs /\n"),
        ("main.r", ""),
    ]);
    kiln.build(&[&context]).failed().says(&[
        "1 warning found",
        "MaintainerDeprecated",
        "\"main.rs\": not found in build context",
        "     |          ^^^^^^^",
        "hint: did you mean main.r?",
    ]);
}

#[test]
fn errors_and_warnings_for_programs() {
    let Some(kiln) = kiln() else { return };
    let context = kiln.context(&[(
        "Dockerfile",
        "FROM busybox\nCMD a\nRUN --mout=type=cache true\n",
    )]);
    let lines = |outcome: &Outcome, key: &str| -> Vec<Value> {
        let lines = outcome
            .stderr
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter_map(|line| line.get(key)?.get(0).cloned())
            .collect()
    };
    let failed = kiln
        .run(&["build", "--progress=rawjson", &context])
        .failed();
    let errors = lines(&failed, "errors");
    let [error] = &errors[..] else {
        panic!("{failed}")
    };
    assert_eq!(error["hint"], "did you mean --mount?", "{failed}");
    assert_eq!(error["file"], "Dockerfile");
    let place = [
        &error["line"],
        &error["endLine"],
        &error["column"],
        &error["endColumn"],
    ];
    assert_eq!(place, [3, 3, 5, 11]);

    let context = kiln.context(&[("Dockerfile", "FROM busybox\n  CMD a\nRUN true\n")]);
    let built = kiln.run(&["build", "--progress=rawjson", &context]).ok();
    let warnings = lines(&built, "warnings");
    let [warning] = &warnings[..] else {
        panic!("{built}")
    };
    assert_eq!(warning["rule"], "JSONArgsRecommended");
    assert_eq!(warning["range"][0]["start"]["line"], 2);
    let place = [
        &warning["line"],
        &warning["endLine"],
        &warning["column"],
        &warning["endColumn"],
    ];
    assert_eq!(place, [2, 2, 3, 8]);

    // A step that failed is an error at its lines.
    let context = kiln.context(&[("Dockerfile", "FROM busybox\nRUN exit 3\n")]);
    let failed = kiln
        .run(&["build", "--progress=rawjson", &context])
        .failed();
    let errors = lines(&failed, "errors");
    assert_eq!(errors[0]["line"], 2, "{failed}");
    assert!(
        errors[0]["message"]
            .as_str()
            .expect("a text")
            .contains("exit code: 3")
    );
}

/// What is compared of docker's and of Kiln's document: all but docker's internal `definition` and the order of what
/// docker finds in no order.
fn comparable(text: &str) -> Value {
    let mut document: Value =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
    if let Some(source) = document["sources"][0].as_object_mut() {
        source.remove("definition");
    }
    for key in ["warnings", "secrets", "ssh", "args"] {
        if let Some(list) = document.get_mut(key).and_then(Value::as_array_mut) {
            list.sort_by_key(Value::to_string);
        }
    }
    if let Some(message) = document["buildError"]["message"].as_str() {
        let first = message.split(" for rules: ").next().unwrap_or_default();
        document["buildError"]["message"] = Value::String(first.to_owned());
    }
    document.as_object_mut().expect("an object").remove("kiln");
    document
}

/// The same cases as in the frontend's table, through the real binary and through docker.
#[test]
fn as_docker_says() {
    let Some(kiln) = kiln() else { return };
    let Some(peers) = xtask::compare::Peers::from_environment() else {
        return;
    };
    let (folder, inside) = peers.shared().expect("a shared folder");
    let archive = folder.path().join("base.tar");
    std::fs::copy(kiln.base_archive("busybox"), &archive).expect("the archive can be copied");
    let load = peers
        .command(["docker", "load", "-i"])
        .arg(inside.join("base.tar"))
        .output();
    assert!(load.expect("docker runs").status.success());
    std::fs::remove_file(&archive).expect("own file");
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let both = |args: &[&str]| {
        let docker = peers
            .command(["docker", "build"])
            .args(args)
            .arg(&inside)
            .output();
        let docker = docker.expect("docker runs");
        let kiln = kiln.run(&[&["build"], args, &[&text(folder.path())]].concat());
        let stdout = String::from_utf8_lossy(&docker.stdout).into_owned();
        (stdout, docker.status.code(), kiln)
    };
    let mut compared = 0;
    for case in include_str!("../../../frontend/tests/checks.txt")
        .split("===")
        .skip(1)
    {
        let (head, rest) = case.split_once('\n').expect("a head");
        let (dockerfile, wanted) = rest.split_once("---\n").expect("findings");
        // `invalid mount target` and the like: Kiln's own words, or known differences.
        if wanted
            .lines()
            .any(|line| line.starts_with("+ ") || line.starts_with("- "))
        {
            continue;
        }
        let mut args = vec!["--call=check,format=json".to_owned()];
        let mut ignore = String::new();
        for setting in head.split_whitespace() {
            match setting.strip_prefix("ignore=") {
                Some(list) => ignore = list.replace(',', "\n"),
                None => args.push(format!("--{setting}")),
            }
        }
        std::fs::write(folder.path().join("Dockerfile"), dockerfile).expect("own folder");
        std::fs::write(folder.path().join(".dockerignore"), ignore).expect("own folder");
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (docker, code, kiln) = both(&args);
        assert_eq!(
            comparable(&kiln.stdout),
            comparable(&docker),
            "{dockerfile}{kiln}"
        );
        assert_eq!(kiln.status.code(), code, "{dockerfile}{kiln}");
        compared += 1;
    }
    assert!(compared > 200, "{compared}");

    let dockerfile = "# A is a\nARG A=busybox\n# b builds <&>\nFROM $A AS b\n# C sea\nARG C=1\nRUN --mount=type=secret,id=x true\nFROM b AS c\nRUN --mount=type=ssh,required true\nARG D\nFROM c\nCOPY --from=b / /\nCMD x\nMAINTAINER y\n";
    std::fs::write(folder.path().join("Dockerfile"), dockerfile).expect("own folder");
    for args in [
        &["--call=outline"][..],
        &["--call=outline", "--target=c"],
        &[
            "--call=outline,format=json",
            "--target=b",
            "--build-arg=C=2",
        ],
        &["--call=targets"],
        &["--call=targets,format=json"],
        &["--call=subrequests.describe"],
        &["--call=subrequests.describe,format=json"],
    ] {
        let (docker, code, kiln) = both(args);
        assert_eq!(kiln.stdout, docker, "{args:?}");
        assert_eq!(kiln.status.code(), code, "{args:?}");
    }
    let (docker, _, kiln) = both(&["--check"]);
    assert_eq!(
        kiln.stdout.replace(&text(folder.path()), &text(&inside)),
        docker
    );
}
