// Command bench measures what the platform's parts cost and writes
// docs/performance.md: unary calls to the echo service directly, through the
// mesh, and through the gateway, sign-ups, log-ins and reads of accounts, displays
// that are connected, and bookings of air time, beside yardsticks that do the same job with
// well-kept programs and libraries and nothing else. Everything is measured in one
// run, the rows in turn, so that what is compared ran under the same conditions;
// what counts are the ratios.
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

	"github.com/marquee-ads/marquee/platform/tools"
)

// document is what is written, within the repository.
const document = "docs/performance.md"

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
		rounds = flag.Int("rounds", 7, "how often each row is measured; those of accounts, devices and orders, which are many, half as often")
		each   = flag.Duration("each", 2*time.Second, "how long each measurement takes")
		only   = flag.String("only", "", "measure just the rows whose name contains this (\"account\" are those of accounts, \"devices\" is what is measured of displays, \"orders\" of air time that is sold), and print the report to standard output instead of writing it")
	)
	flag.Parse()
	// Longer, and the access tokens that a round began with expire in it.
	const longest = 10 * time.Second
	if *rounds < 1 || *each <= 0 || *each > longest {
		return fmt.Errorf("-rounds %d and -each %s: want at least 1, and at most %s", *rounds, *each, longest)
	}
	root, err := tools.Root()
	if err != nil {
		return err
	}
	b := &bench{root: root, only: *only}
	defer b.close()
	if err := b.setUp(ctx); err != nil {
		return err
	}
	calls, err := b.echoRows(ctx)
	if err != nil {
		return err
	}
	report := ""
	if rows := b.wanted(calls); len(rows) > 0 {
		echo := &series{rows: rows, rounds: *rounds, each: *each, warmUp: *each / 2}
		if err := echo.measure(ctx); err != nil {
			return err
		}
		report = echo.report()
	}
	if b.wantsAccounts() {
		accounts := &series{rounds: max(1, *rounds/2), each: *each, warmUp: *each / 8}
		if err := b.measureAccounts(ctx, accounts); err != nil {
			return err
		}
		report += accounts.accountReport()
	}
	// Before there are devices, of which the order service would hear.
	if b.wantsOrders() {
		orders, err := b.measureOrders(ctx, max(1, *rounds/2), *each)
		if err != nil {
			return err
		}
		report += orders
	}
	if b.wantsDevices() {
		devices, err := b.measureDevices(ctx, max(1, *rounds/2))
		if err != nil {
			return err
		}
		report += devices
	}
	if *only != "" {
		fmt.Print(report)
		return nil
	}
	idle, err := idleResolvers(ctx, root)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, document), []byte(report+idle), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	fmt.Fprintf(os.Stderr, "\nwrote %s\n", document)
	return nil
}
