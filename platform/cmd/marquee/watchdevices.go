package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/stack"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
)

type watchDevicesCmd struct {
	Device       []string `arg:"" optional:"" help:"Ids of devices. Default: all of the organisation."`
	Organisation string   `placeholder:"ID" help:"Whose devices. Default: the caller's organisation, if there is one alone."`
	Token        string   `help:"Access token to watch with; it lives for minutes. Default: that of --as, again and again."`
	As           string   `help:"Who watches, as an owner of the demo's displays: ${owners}." enum:"${owners}" default:"demo"`
}

// Run watches until Ctrl-C.
func (c *watchDevicesCmd) Run(e *env) error {
	return e.withAPI(func(s *stack.Stack, d *door, a *api) error {
		w := &deviceWatch{conn: d, token: c.Token, organisation: c.Organisation, devices: c.Device}
		if c.Token == "" {
			w.logIn = func(ctx context.Context) (string, error) { return demoToken(ctx, s, c.As, a, d) }
		}
		if err := w.run(e.ctx, e.stdout, e.stderr); err != nil {
			return errors.New(explainStatus(err, a.resolver()))
		}
		return nil
	})
}

const (
	watchFirstPause = 200 * time.Millisecond
	watchLastPause  = 5 * time.Second
	redrawEvery     = 200 * time.Millisecond
)

// deviceWatch follows the devices of an organisation, whichever gateways and
// instances come and go meanwhile.
type deviceWatch struct {
	conn         grpc.ClientConnInterface
	token        string // empty when there is none that is good
	logIn        func(context.Context) (string, error)
	organisation string // empty for the only one
	devices      []string

	mu    sync.Mutex // guards table
	table deviceTable
	lines func(format string, args ...any) // writes one; nil when the table is drawn
}

// run watches until ctx ends, or forever failing. On a terminal it draws a table,
// elsewhere it writes a line for each change.
func (w *deviceWatch) run(ctx context.Context, stdout, stderr io.Writer) error {
	w.table = newDeviceTable()
	terminal, ok := stdout.(*os.File)
	if !ok || !term.IsTerminal(int(terminal.Fd())) {
		w.lines = func(format string, args ...any) {
			fmt.Fprintf(stdout, time.Now().Format(time.TimeOnly)+"  "+format+"\n", args...)
		}
		return w.follow(ctx, func(why error) { fmt.Fprintln(stderr, "watching again:", shortStatus(why)) })
	}
	drawing, end := context.WithCancel(ctx)
	var drawn sync.WaitGroup
	drawn.Go(func() { w.draw(drawing, terminal) })
	err := w.follow(ctx, func(why error) { w.change(func(t *deviceTable) { t.trouble = shortStatus(why) }) })
	end()
	drawn.Wait()
	return err
}

func (w *deviceWatch) change(f func(*deviceTable)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.table)
}

// follow watches again whenever the watch ends for a reason that passes; again is
// told the reason.
func (w *deviceWatch) follow(ctx context.Context, again func(error)) error {
	pause := watchFirstPause
	for ctx.Err() == nil {
		given := w.logIn == nil || w.token == "" // not known to have been good
		began, err := w.once(ctx)
		expired := status.Code(err) == codes.Unauthenticated
		switch {
		case ctx.Err() != nil:
			continue
		case expired && w.logIn != nil && (began || !given):
			// As every few minutes.
			w.token = ""
			continue
		case expired || !passes(err):
			return err
		}
		again(err)
		if began {
			pause = watchFirstPause
		}
		// By a random factor: many may have lost the same gateway.
		timer := time.NewTimer(time.Duration(float64(pause) * (0.5 + rand.Float64()))) //nolint:gosec // no secret
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, watchLastPause)
	}
	return nil
}

// passes says whether watching again may go better.
func passes(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.PermissionDenied, codes.FailedPrecondition, codes.Unimplemented:
		return false
	default:
		s, ok := status.FromError(err)
		return ok && s.Code() != codes.OK
	}
}

// shortStatus is an error on one line.
func shortStatus(err error) string {
	s := status.Convert(err)
	return fmt.Sprintf("%s (%s)", s.Message(), s.Code())
}

// once watches until the watch ends, and says whether it had begun.
func (w *deviceWatch) once(ctx context.Context) (began bool, err error) {
	if w.token == "" {
		if w.token, err = w.logIn(ctx); err != nil {
			return false, err
		}
	}
	ctx, cancel := context.WithCancel(bearer(ctx, w.token))
	defer cancel()
	if w.organisation == "" {
		if w.organisation, err = onlyOrganisation(ctx, w.conn); err != nil {
			return false, err
		}
	}
	stream, err := devicev1.NewDeviceServiceClient(w.conn).WatchDevices(ctx, &devicev1.WatchDevicesRequest{OrganisationId: w.organisation, DeviceIds: w.devices})
	if err != nil {
		return false, err
	}
	w.change((*deviceTable).begin)
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return began, status.Error(codes.Unavailable, "the watch ended")
		}
		if err != nil {
			return began, err
		}
		began = true
		w.change(func(t *deviceTable) {
			t.trouble = ""
			for _, line := range t.apply(event) {
				if w.lines != nil {
					w.lines("%s", line)
				}
			}
		})
	}
}

// onlyOrganisation is the one that the caller is in.
func onlyOrganisation(ctx context.Context, conn grpc.ClientConnInterface) (string, error) {
	found, err := accountv1.NewOrganisationServiceClient(conn).ListOrganisations(ctx, &accountv1.ListOrganisationsRequest{PageSize: 200})
	if err != nil {
		return "", fmt.Errorf("reading which organisation is meant: %w", err)
	}
	var names []string
	for _, m := range found.GetMemberships() {
		names = append(names, m.GetOrganisation().GetOrganisationId()+" ("+m.GetOrganisation().GetName()+")")
	}
	switch len(names) {
	case 0:
		return "", status.Error(codes.FailedPrecondition, "the caller is in no organisation: make one, or name one with --organisation")
	case 1:
		return found.GetMemberships()[0].GetOrganisation().GetOrganisationId(), nil
	default:
		return "", status.Error(codes.FailedPrecondition, "name one of the caller's organisations with --organisation: "+strings.Join(names, ", "))
	}
}

// What terminals understand: a screen of its own, without a cursor, and back; to
// its upper left corner; to the end of the line, and of the screen.
const (
	ownScreen   = "\x1b[?1049h\x1b[?25l"
	otherScreen = "\x1b[?25h\x1b[?1049l"
	toCorner    = "\x1b[H"
	restOfLine  = "\x1b[K"
	restOfAll   = "\x1b[J"
)

// draw keeps the table on the screen until ctx ends, and leaves the last one on the
// screen that was there before.
func (w *deviceWatch) draw(ctx context.Context, terminal *os.File) {
	fmt.Fprint(terminal, ownScreen)
	tick := time.NewTicker(redrawEvery)
	defer tick.Stop()
	for {
		width, height, err := term.GetSize(int(terminal.Fd()))
		if err != nil {
			width, height = 80, 24
		}
		w.mu.Lock()
		lines := w.table.rows(time.Now(), width, height-1)
		w.mu.Unlock()
		fmt.Fprint(terminal, toCorner+strings.Join(lines, restOfLine+"\n")+restOfLine+restOfAll)
		select {
		case <-tick.C:
		case <-ctx.Done():
			fmt.Fprintln(terminal, otherScreen+strings.Join(lines, "\n"))
			return
		}
	}
}
