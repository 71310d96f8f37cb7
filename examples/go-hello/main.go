// Greets the user that the program runs as.
package main

import (
	"fmt"
	"os"
	"os/user"
)

func main() {
	current, err := user.Current()
	if err != nil {
		fmt.Fprintln(os.Stderr, "hello: who are you?", err)
		os.Exit(1)
	}
	fmt.Printf("Hello, %s! (uid %s)\n", current.Username, current.Uid)
}
