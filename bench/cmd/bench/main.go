// Command bench measures what the platform's parts cost and writes
// docs/performance.md: unary calls to the echo service directly, through the
// mesh, and through the gateway, beside yardsticks that do the same job with
// well-kept libraries and nothing else. Everything is measured in one run, the
// rows in turn, so that what is compared ran under the same conditions; what
// counts are the ratios.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var (
		root   = flag.String("root", ".", "the repository")
		out    = flag.String("out", "docs/performance.md", "the report, relative to the repository")
		rounds = flag.Int("rounds", 7, "how often each row is measured")
		each   = flag.Duration("each", 2*time.Second, "how long each measurement takes")
		only   = flag.String("only", "", "measure just the rows whose name contains this, and print instead of writing the report")
		cpu    = flag.String("profile", "", "write the gateway's CPU profile, taken during its rows, to this file")
	)
	flag.Parse()
	dir, err := filepath.Abs(*root)
	if err != nil {
		return err
	}
	b := &bench{root: dir, rounds: *rounds, each: *each, only: *only, profile: *cpu}
	defer b.close()
	if err := b.setUp(ctx); err != nil {
		return err
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	idle, err := idleResolvers(ctx, b)
	if err != nil {
		return err
	}
	report := b.report() + idle
	if *only != "" {
		fmt.Print(report)
		return nil
	}
	path := filepath.Join(dir, *out)
	if err := os.WriteFile(path, []byte(report), 0o644); err != nil { //nolint:gosec // a document
		return err
	}
	fmt.Printf("\nwrote %s\n", *out)
	return nil
}
