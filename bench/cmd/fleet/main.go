// Command fleet is many MQTT clients in one process, which bench tells on its
// standard input what to do. It ends when that does.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"github.com/marquee-ads/marquee/bench/fleet"
)

func main() {
	logins := flag.String("logins", "", "file with whom to connect as: JSON")
	flag.Parse()
	if err := run(*logins); err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

func run(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("-logins: %w", err)
	}
	var logins []fleet.Login
	if err := json.Unmarshal(text, &logins); err != nil {
		return fmt.Errorf("-logins: %s: %w", path, err)
	}
	return fleet.Serve(context.Background(), logins, os.Stdin, os.Stdout)
}
