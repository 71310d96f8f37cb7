//! Named contexts that are images in layout folders.

use std::fs;
use std::process::Command;

use kiln_tests::{Kiln, Setting, in_each_setting};

in_each_setting! { layouts }

fn layouts(setting: Setting) {
    let Some(maker) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let made = maker.context(&[(
        "Dockerfile",
        "FROM busybox\nRUN echo from the layout >/told\nENV A=b\nONBUILD ENV TRIGGERED=1\n",
    )]);
    maker.build(&["-t", "made:v1", &made]).ok();
    let archive = maker.file("made.tar");
    let archive_name = archive.to_str().unwrap();
    maker
        .run(&["save", "--format", "oci", "-o", archive_name, "made:v1"])
        .ok();
    // Another store, which has nothing of it.
    let Some(kiln) = Kiln::fresh(setting, &[]) else {
        return;
    };
    let layout = kiln.file("layout");
    fs::create_dir(&layout).unwrap();
    let unpacked = Command::new("tar")
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(&layout)
        .status();
    assert!(unpacked.is_ok_and(|status| status.success()));
    for path in [&layout, &layout.join("blobs"), &layout.join("blobs/sha256")] {
        let open = Command::new("chmod")
            .arg("-R")
            .arg("a+rX")
            .arg(path)
            .status();
        assert!(open.is_ok_and(|status| status.success()));
    }
    let layout = layout.to_str().unwrap();
    let context = kiln.context(&[(
        "Dockerfile",
        "FROM base AS one\nRUN cat /told && echo $A $TRIGGERED\nFROM scratch\nCOPY --from=base /told /\n\
         COPY --from=one /told /again\n",
    )]);
    let build = |place: &str| kiln.build(&["--build-context", &format!("base={place}"), &context]);
    build(&format!("oci-layout://{layout}:v1")).ok().says(&[
        "from the layout",
        "b 1",
        "[context base] oci-layout://base:v1",
    ]);
    // The only image needs no name.
    let second = build(&format!("oci-layout://{layout}")).ok();
    assert!(second.executed().is_empty(), "{second}");
    let index = fs::read_to_string(format!("{layout}/index.json")).unwrap();
    let digest = index.split("\"digest\":\"").nth(1).unwrap();
    let digest = digest.split('"').next().unwrap();
    let third = build(&format!("oci-layout://{layout}@{digest}")).ok();
    assert!(third.executed().is_empty(), "{third}");
    build(&format!("oci-layout://{layout}:v2")).failed().says(&[
        "context base: ",
        "no image \"v2\"; it has",
        "hint: write oci-layout://",
    ]);
    build("oci-layout:///nowhere:v1")
        .failed()
        .says(&["context base: ", "/nowhere/index.json"]);
    let plain = kiln.context(&[("Dockerfile", "FROM scratch\nLABEL a=b\n")]);
    // What is not used is not looked at.
    kiln.build(&["--build-context", "base=oci-layout:///nowhere", &plain])
        .ok();
    for kind in ["target", "input"] {
        kiln.build(&["--build-context", &format!("base={kind}:x"), &plain])
            .failed()
            .says(&[&format!("{kind}: names a part of a bake file")]);
    }
    kiln.leaves_nothing();
}
