//! What the user is shown for Dockerfiles that cannot be built: every message as a whole.

mod common;

use common::{World, options};

#[test]
fn messages() {
    let cases = [
        // Lines and instructions
        "",
        "# nothing\n",
        "RUM true\n",
        "RUN true\n",
        "ARG A=1\n",
        "FROM busybox\nCOPX a b\nRUN true\n",
        "FROM busybox\n\tcoyp a b\n",
        "FROM busybox\nRUN true\nVOLUM /a\n",
        "# escape=x\nFROM busybox\n",
        "# escape=`\n# escape=`\nFROM busybox\n",
        "FROM busybox\nRUN <<EOF\necho\n",
        "# check=skp=all\nFROM busybox\n",
        "# syntax=acme/image-builder:1.2\n{\"steps\": []}\n",
        // FROM
        "FROM\n",
        "FROM busybox s build\n",
        "FROM busybox AS 1st\n",
        "FROM busybox AS b@d\n",
        "FROM --platfrom=linux/amd64 busybox\n",
        "FROM --platform=$BULIDPLATFORM busybox\n",
        "FROM --platform=a/b/c/d busybox\n",
        "FROM UpperCase\n",
        "ARG IMAEG=busybox\nFROM $IMAGE\n",
        "ARG TAG\nFROM busybox:${TAG:?give one}\n",
        "FROM busybox:${TAG\n",
        // Flags
        "FROM busybox\nRUN --mout=type=cache,target=/c true\n",
        "FROM busybox\nCOPY --form=build a b\n",
        "FROM busybox\nCOPY --link=maybe a b\n",
        "FROM busybox\nCOPY --chown a b\n",
        "FROM busybox\nCOPY --chmod=1 --chmod=2 a b\n",
        "FROM busybox\nRUN --network=nnoe true\n",
        "FROM busybox\nRUN --security=insecur true\n",
        // Mounts
        "FROM busybox\nRUN --mount=type=cach,target=/c true\n",
        "FROM busybox\nRUN --mount=type=bind,taget=/c true\n",
        "FROM busybox\nRUN --mount=type=cache,target=/c,sharing=lockd \\\n    true\n",
        "FROM busybox\nRUN --mount=type=cache,target=/c,size=1m true\n",
        "FROM busybox\nRUN --mount=type=tmpfs,target=/ true\n",
        "FROM busybox\nRUN --mount=type=secret true\n",
        "FROM busybox\nRUN --mount=from=$x,target=/c true\n",
        "FROM busybox\nRUN --mount=type=cache,target=/c,mode=99 true\n",
        // COPY and ADD
        "FROM busybox\nCOPY a\n",
        "FROM busybox\nCOPY https://example.org/a /\n",
        "FROM busybox\nCOPY --from=3 a b\n",
        "FROM busybox AS one\nCOPY --from=one a b\n",
        "FROM busybox AS one\nCOPY --from=two a b\nFROM busybox AS two\nCOPY --from=one a b\n",
        "FROM busybox\nCOPY --chmod=rwx a b\n",
        "FROM busybox\nCOPY --chmod=99999 a b\n",
        "FROM busybox\nADD --checksum=sha256:0 a b\n",
        "FROM busybox\nCOPY a <<EOF\nEOF\n",
        // The rest
        "FROM busybox\nENV A\n",
        "FROM busybox\nENV A=1 B\n",
        "FROM busybox\nLABEL =1\n",
        "FROM busybox\nWORKDIR\n",
        "FROM busybox\nWORKDIR ${a\n",
        "FROM busybox\nENV HOME=/h\nWORKDIR ${HOEM:?no home}\n",
        "FROM busybox\nEXPOSE 80/tpc\n",
        "FROM busybox\nEXPOSE 99999\n",
        "FROM busybox\nSTOPSIGNAL SIGTREM\n",
        "FROM busybox\nSHELL /bin/sh\n",
        "FROM busybox\nHEALTHCHECK --interval=5 CMD true\n",
        "FROM busybox\nHEALTHCHECK --retires=5 CMD true\n",
        "FROM busybox\nHEALTHCHECK CMND true\n",
        "FROM busybox\nONBUILD ONBUILD RUN true\n",
        "FROM busybox\nONBUILD FROM busybox\n",
        "FROM busybox\nONBUILD RUM true\n",
        "FROM busybox\nCMD [1, \"a\"]\n",
    ];
    assert!(cases.len() >= 40);
    let world = World::default();
    let shown: Vec<String> = cases
        .iter()
        .map(|text| {
            let shown = world.show(text, &options());
            assert!(shown.contains("ERROR: "), "{text:?} is taken:\n{shown}");
            // Names that only this program knows are nobody's business.
            for inner in ["sha256:", "Need", "OpId", "NodeId", "Some("] {
                assert!(
                    !shown.replace(text, "").contains(inner) || text.contains(inner),
                    "{shown}"
                );
            }
            shown
        })
        .collect();
    insta::assert_snapshot!(shown.join("\n"));
}

#[test]
fn targets_that_are_not_there() {
    let mut options = options();
    options.target = Some("bulid".to_owned());
    let shown = World::default().show("FROM busybox AS build\n", &options);
    let wanted = "ERROR: target stage \"bulid\" could not be found\nhint: did you mean build?\n";
    assert_eq!(shown, wanted);
}
