// Command errorsdoc prints docs/errors.md: a page of explanation with the table
// of codes as the code has it.
package main

import (
	_ "embed"
	"fmt"
	"os"
	"strings"

	"github.com/marquee-ads/marquee/platform/fault"
)

//go:embed page.md
var page string

func main() { fmt.Print(render()) }

func render() string {
	var table strings.Builder
	table.WriteString("| gRPC code | number | HTTP status | title |\n|---|---|---|---|\n")
	for _, c := range fault.Codes() {
		fmt.Fprintf(&table, "| %s | %d | %d | %s |\n", c, c, c.HTTPStatus(), c.Title())
	}
	if !strings.Contains(page, "{{codes}}\n") {
		fmt.Fprintln(os.Stderr, "errorsdoc: page.md has no place for the table")
		os.Exit(1)
	}
	return strings.Replace(page, "{{codes}}\n", table.String(), 1)
}
