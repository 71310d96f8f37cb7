//! Tables of templates with what Go makes of them.

use serde_json::json;

use crate::{Fields, Shape, Template, Value};

fn image() -> Value {
    let mut config = Fields::new(Shape::Struct);
    config.add("User", "33");
    config.add("Env", Value::from(json!(["A=b", "C=d e"])));
    config.add("Entrypoint", Value::NilList);
    config.add("Labels", Value::from(json!({"l": "two words", "k": "v"})));
    config.hide("Healthcheck", Value::Null);
    config.hide("Interval", Value::Duration(90_500_000_000));
    let mut image = Fields::new(Shape::Struct);
    image.add("Id", "sha256:ab");
    image.add("Os", "linux");
    image.add("Size", 1_982_599);
    image.add("Config", config);
    image.add("Layers", Value::from(json!(["x", "y", "z"])));
    image.add("Volumes", Value::NilMap);
    image.hide(
        "Label",
        Value::Lookup(vec![("k".to_owned(), "v".to_owned())]),
    );
    image.into()
}

fn render(text: &str) -> String {
    match Template::parse(text) {
        Ok(template) => template
            .render(&image())
            .unwrap_or_else(|error| format!("ERROR {error}")),
        Err(error) => format!("ERROR {error}"),
    }
}

#[test]
fn values_are_shown_as_go_shows_them() {
    for (template, shown) in [
        ("plain", "plain"),
        ("{{.Id}} {{.ID}}", "sha256:ab sha256:ab"),
        ("{{ .Size }}", "1982599"),
        ("{{.Config.Env}}", "[A=b C=d e]"),
        ("{{.Config.Entrypoint}}", "[]"),
        ("{{.Config.Labels}}", "map[k:v l:two words]"),
        (
            "{{.Config.Labels.k}} {{.Config.Labels.nope}}",
            "v <no value>",
        ),
        ("{{.Config.Healthcheck}}", "<nil>"),
        ("{{.Volumes}}", "map[]"),
        (
            "{{.Config.Interval}} {{json .Config.Interval}}",
            "1m30.5s 90500000000",
        ),
        ("{{.Label \"k\"}},{{.Label \"z\"}}", "v,"),
        (
            "{{1}} {{1.5}} {{true}} {{\"a\\tb\"}} {{`r\\w`}} {{'a'}}",
            "1 1.5 true a\tb r\\w 97",
        ),
        (
            "{{.Config}}",
            "{33 [A=b C=d e] [] map[k:v l:two words] <nil> 1m30.5s}",
        ),
    ] {
        assert_eq!(render(template), shown, "{template}");
    }
}

#[test]
fn functions() {
    for (template, shown) in [
        ("{{json .Config.Env}}", r#"["A=b","C=d e"]"#),
        ("{{json .Config.Entrypoint}}", "null"),
        ("{{json .Config.Labels}}", r#"{"k":"v","l":"two words"}"#),
        ("{{json \"<&>\"}}", "\"<&>\""),
        (
            "{{json .Config}}",
            r#"{"User":"33","Env":["A=b","C=d e"],"Entrypoint":null,"Labels":{"k":"v","l":"two words"}}"#,
        ),
        ("{{.Config.Env | json}}", r#"["A=b","C=d e"]"#),
        (
            "{{len .Layers}} {{len .Os}} {{len .Config.Labels}} {{len .Volumes}}",
            "3 5 2 0",
        ),
        (
            "{{index .Layers 1}} {{index .Config.Labels \"l\"}}[{{index .Config.Labels \"z\"}}]",
            "y two words[]",
        ),
        ("{{index .Config \"User\"}}", "33"),
        ("{{slice .Id 0 6}} {{slice .Layers 1}}", "sha256 [y z]"),
        ("{{join .Layers \", \"}}", "x, y, z"),
        ("{{join .Config.Entrypoint \" \"}}.", "."),
        (
            "{{upper .Os}} {{lower \"AB\"}} {{title \"a bc\"}} {{.Os | upper | lower}}",
            "LINUX ab A Bc linux",
        ),
        (
            "{{split .Id \":\"}} {{index (split .Id \":\") 1}}",
            "[sha256 ab] ab",
        ),
        ("{{pad .Os 1 2}}| {{truncate .Os 3}}", " linux  | lin"),
        ("{{print 1 2 \"a\" 3}} {{println \"a\" 1}}", "1 2a3 a 1\n"),
        (
            "{{printf \"%s|%5d|%-6s|%q|%.2s|%v|%05d|%%|%t\" .Os 7 \"ab\" .Id .Os .Size 42 true}}",
            "linux|    7|ab    |\"sha256:ab\"|li|1982599|00042|%|true",
        ),
        (
            "{{printf \"%d\" .Os}} {{printf \"%s\"}} {{printf \"x\" 1}}",
            "%!d(string=linux) %!s(MISSING) x%!(EXTRA 1)",
        ),
        (
            "{{eq .Os \"linux\"}} {{eq .Size 1 1982599}} {{ne 1 2}} {{lt 1 2}} {{ge \"b\" \"a\"}} {{not .Volumes}}",
            "true true true true true true",
        ),
        (
            "{{and .Os .Volumes}} {{or .Volumes .Os}} {{and false (index .Layers 9)}}",
            "map[] linux false",
        ),
    ] {
        assert_eq!(render(template), shown, "{template}");
    }
}

#[test]
fn actions() {
    for (template, shown) in [
        ("{{if .Config.User}}u{{else}}n{{end}}", "u"),
        (
            "{{if .Volumes}}v{{else if eq .Os \"linux\"}}l{{else}}n{{end}}!",
            "l!",
        ),
        ("{{range .Layers}}{{.}};{{end}}", "x;y;z;"),
        ("{{range .Config.Entrypoint}}x{{else}}none{{end}}", "none"),
        (
            "{{range $i, $e := .Layers}}{{$i}}={{$e}} {{end}}",
            "0=x 1=y 2=z ",
        ),
        (
            "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}",
            "k=v;l=two words;",
        ),
        (
            "{{range $e := .Layers}}{{if eq $e \"y\"}}{{continue}}{{end}}{{$e}}{{end}}",
            "xz",
        ),
        (
            "{{range .Layers}}{{if eq . \"y\"}}{{break}}{{end}}{{.}}{{end}}",
            "x",
        ),
        ("{{range .Layers}}{{println .}}{{end}}", "x\ny\nz\n"),
        ("{{range 3}}{{.}}{{end}}", "012"),
        ("{{with .Config}}{{.User}} {{$.Os}}{{end}}", "33 linux"),
        ("{{with .Config.Healthcheck}}h{{else}}none{{end}}", "none"),
        ("{{$x := .Os}}{{$x}} {{$x = \"b\"}}{{$x}}", "linux b"),
        ("a {{- /* no */ -}} b", "ab"),
        ("a  {{- .Os -}}  b", "alinuxb"),
        (
            "{{(index .Config.Env 0) | upper}} {{(.Config).User}}",
            "A=B 33",
        ),
        ("{{\"}}\"}}", "}}"),
    ] {
        assert_eq!(render(template), shown, "{template}");
    }
}

#[test]
fn rows_are_sorted_and_safe_in_html() {
    let mut row = Fields::new(Shape::Row);
    row.add("Tag", "<none>");
    row.add("ID", "ab");
    let row = Value::from(row);
    let template = Template::parse("{{json .}} {{.Tag}}").unwrap();
    assert_eq!(
        template.render(&row).unwrap(),
        r#"{"ID":"ab","Tag":"\u003cnone\u003e"} <none>"#
    );
}

#[test]
fn mistakes_are_pointed_at() {
    for (template, error) in [
        (
            "{{.Nope}}",
            "line 1, column 3: there is no field Nope; there are Id, Os, ",
        ),
        (
            "a\n  {{.Os",
            "line 2, column 3: the action does not end: }} is missing",
        ),
        (
            "{{range .Layers}}",
            "column 1: range does not end: {{end}} is missing",
        ),
        ("{{end}}", "end without if, range or with"),
        ("{{else}}", "else without if"),
        ("{{if .Os}}{{else}}{{else}}{{end}}", "a second else"),
        (
            "{{foo .Os}}",
            "column 3: there is no function foo; the functions are and, or",
        ),
        (
            "{{index .Layers 7}}",
            "index: there is no element 7 in a list of 3",
        ),
        (
            "{{join .Os \",\"}}",
            "join: expected a list, this is a text",
        ),
        ("{{upper .Size}}", "upper: expected a text, got a number"),
        ("{{.Os.X}}", "a text has no fields, so no X"),
        ("{{.Os \"x\"}}", "it is no function"),
        ("{{.Label}}", "a name is missing"),
        ("{{\"x}}", "the text does not end"),
        ("{{'ab'}}", "double quotes"),
        ("{{(.Os}}", ") is missing"),
        ("{{.Os)}}", "( is missing"),
        ("{{}}", "a value is missing"),
        ("{{.Os |}}", "a value is missing"),
        ("{{| .Os}}", "nothing stands before |"),
        ("{{$x}}", "there is no variable $x"),
        ("{{template \"x\"}}", "template is not possible"),
        ("{{break}}", "break outside of range"),
        (
            "{{range .Os}}{{end}}",
            "range goes over lists and maps, this is a text",
        ),
        (
            "{{.Config.Healthcheck.Test}}",
            "nothing that could have a field Test",
        ),
        ("{{§}}", "is not understood"),
        ("{{/* a", "the comment does not end"),
        ("{{if .Os}}", "if does not end"),
    ] {
        let shown = render(template);
        assert!(
            shown.starts_with("ERROR ") && shown.contains(error),
            "{template}: {shown}"
        );
    }
    let deep = format!("{}1{}", "{{if 1}}".repeat(500), "{{end}}".repeat(500));
    assert!(render(&deep).contains("too many blocks"));
    let deep = format!("{{{{{}1{}}}}}", "(".repeat(500), ")".repeat(500));
    assert!(render(&deep).contains("too many parentheses"));
}
