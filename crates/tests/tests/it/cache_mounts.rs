//! Cache mounts: what stays, who waits, what they start as.

use std::time::Instant;

use kiln_tests::{Kiln, Setting, in_each_setting};

in_each_setting! { they_stay_and_seeds_fill_them locked_ones_are_taken_in_turn private_ones_are_copies owners }

fn they_stay_and_seeds_fill_them(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let dockerfile = |text: &str| {
        format!(
            "FROM busybox AS seed\nRUN mkdir -p /s/d && echo seeded > /s/d/f && chmod 750 /s/d && chown -R 33:44 /s/d && ln -s d /s/l\n\
             FROM busybox\nRUN --mount=type=cache,target=/c,from=seed,source=/s \
             stat -c '%n %a %u:%g' /c/d /c/d/f; readlink /c/l; cat /c/d/f; echo {text} >> /c/count; wc -l < /c/count\n\
             RUN test ! -e /c/d && ls -A /c | wc -l\n"
        )
    };
    let context = kiln.context(&[("Dockerfile", &dockerfile("one"))]);
    kiln.build(&[&context])
        .ok()
        .says(&["/c/d 750 33:44", "/c/d/f 644 33:44", "seeded", " 1"]);
    std::fs::write(format!("{context}/Dockerfile"), dockerfile("two")).expect("own file");
    // The folder stays, with what the first build left in it.
    let second = kiln.build(&[&context]).ok().says(&["seeded", " 2"]);
    assert_eq!(second.executed().len(), 1, "{second}");
    kiln.leaves_nothing();
}

fn locked_ones_are_taken_in_turn(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let step = |name: &str| {
        format!(
            "FROM busybox AS {name}\nRUN --mount=type=cache,id=turns,target=/c,sharing=locked \
             test ! -e /c/busy && touch /c/busy && sleep 0.5 && rm /c/busy && echo {name} > /done\n"
        )
    };
    let dockerfile = format!(
        "{}{}{}FROM scratch\nCOPY --from=a /done /a\nCOPY --from=b /done /b\nCOPY --from=c /done /c\n",
        step("a"),
        step("b"),
        step("c")
    );
    let context = kiln.context(&[("Dockerfile", &dockerfile)]);
    let started = Instant::now();
    kiln.build(&[&context]).ok();
    assert!(
        started.elapsed().as_millis() >= 1500,
        "{:?}",
        started.elapsed()
    );
    kiln.leaves_nothing();
}

fn private_ones_are_copies(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let step = |name: &str| {
        format!(
            "FROM busybox AS {name}\nRUN --mount=type=cache,id=own,target=/c,sharing=private \
             test ! -e /c/busy && touch /c/busy && sleep 1 && rm /c/busy && echo {name} > /done\n"
        )
    };
    let dockerfile = format!(
        "{}{}FROM scratch\nCOPY --from=a /done /a\nCOPY --from=b /done /b\n",
        step("a"),
        step("b")
    );
    let context = kiln.context(&[("Dockerfile", &dockerfile)]);
    let build = kiln.build(&[&context]).ok();
    build.silent_about(&["waiting"]);
    kiln.leaves_nothing();
}

fn owners(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let dockerfile = "FROM busybox\nUSER 1000:2000\n\
                      RUN --mount=type=cache,target=/mine stat -c '%n %a %u:%g' /mine && touch /mine/x\n\
                      RUN --mount=type=cache,target=/told,uid=33,gid=44,mode=0700 stat -c '%n %a %u:%g' /told\n";
    let context = kiln.context(&[("Dockerfile", dockerfile)]);
    kiln.build(&[&context])
        .ok()
        .says(&["/mine 755 1000:2000", "/told 700 33:44"]);
}
