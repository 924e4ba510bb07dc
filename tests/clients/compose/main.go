// Reads files of Docker Compose as version 2 does, by its own library, and prints what it makes of
// them: compose-config ENV_FILE PROFILES FILE...
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	options, err := cli.NewProjectOptions(
		os.Args[3:],
		cli.WithEnvFiles(os.Args[1]),
		cli.WithDotEnv,
		cli.WithProfiles(strings.Split(os.Args[2], ",")),
		cli.WithName("test"),
	)
	if err != nil {
		log.Fatal(err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	text, err := project.MarshalYAML()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(text))
}
