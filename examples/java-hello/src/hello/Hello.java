package hello;

/** Greets whoever the arguments name. */
public final class Hello {
    private Hello() {}

    public static void main(String[] names) {
        String name = names.length == 0 ? "world" : String.join(" and ", names);
        System.out.println("Hello, " + name + ", from Java " + Runtime.version().feature() + "!");
    }
}
