package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/marquee-ads/marquee/platform/service"
	"github.com/marquee-ads/marquee/services/order"
)

// command is what is done in place of serving. It prints, and fails when something is
// not as it should be.
type command func(ctx context.Context, j *job) error

// job is what a command works with.
type job struct {
	sales     *order.Service
	playlists order.Playlists
	// checkWithin is how long what is told may be on its way to devices.
	checkWithin time.Duration
	out         io.Writer
	failed      error // the first line that was not printed
}

// Why commands exit with 1.
var (
	errLedger    = errors.New("the ledger does not fit together")
	errPlaylists = errors.New("devices do not know what is sold")
)

// meshWithin is how long a command waits for the way to others.
const meshWithin = 20 * time.Second

// execute runs a command once the mesh is there.
func execute(ctx context.Context, svc *service.Service, do command, j job) error {
	within, cancel := context.WithTimeout(ctx, meshWithin)
	defer cancel()
	if err := svc.Mesh().Ready(within); err != nil {
		return err
	}
	return errors.Join(do(ctx, &j), j.failed)
}

func (j *job) print(format string, args ...any) {
	if j.failed != nil {
		return
	}
	if _, err := fmt.Fprintf(j.out, format+"\n", args...); err != nil {
		j.failed = fmt.Errorf("printing: %w", err)
	}
}

func checkLedger(ctx context.Context, j *job) error {
	checked, err := j.sales.CheckLedger(ctx)
	if err != nil {
		return err
	}
	for _, finding := range checked.Findings {
		j.print("%s", finding)
	}
	if n := len(checked.Findings); n > 0 {
		return fmt.Errorf("%w: %d findings", errLedger, n)
	}
	j.print("%d entries and %d orders that were booked fit together", checked.Entries, checked.Orders)
	return nil
}

func checkPlaylists(ctx context.Context, j *job) error {
	checked, err := j.sales.CheckPlaylists(ctx, j.playlists, j.checkWithin)
	if err != nil {
		return err
	}
	for _, finding := range checked.Findings {
		j.print("%s", finding)
	}
	if n := len(checked.Findings); n > 0 {
		return fmt.Errorf("%w: %d lines differ", errPlaylists, n)
	}
	j.print("devices know all %d lines that are sold, and no others", checked.Lines)
	return nil
}

func rebuildPlaylists(ctx context.Context, j *job) error {
	done, err := j.sales.Rebuild(ctx, j.playlists)
	if err != nil {
		return err
	}
	for _, id := range done.Gone {
		j.print("device %s is gone: what is sold on it is not played", id)
	}
	j.print("%d displays: %d lines were different, of %d lines displays were not told", done.Displays, done.Changed, done.Told)
	return nil
}
