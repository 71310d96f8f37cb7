package example;

import org.apache.commons.lang3.StringUtils;

/** Writes its arguments as a headline. */
public final class Headline {
    private Headline() {}

    public static void main(String[] words) {
        String text = StringUtils.capitalize(String.join(" ", words));
        System.out.println(text);
        System.out.println(StringUtils.repeat('=', text.length()));
    }
}
