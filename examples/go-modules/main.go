// Prints the same name-based UUID for the same words.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/google/uuid"
)

func main() {
	words := strings.Join(os.Args[1:], " ")
	fmt.Println(uuid.NewSHA1(uuid.NameSpaceURL, []byte(words)))
}
