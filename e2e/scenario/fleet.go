package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/files"
	"github.com/marquee-ads/marquee/platform/release"
)

const (
	// fleetCallers is how many calls at once set a fleet up.
	fleetCallers = 16
	// offlineBound is how long a display may be shown as connected that is not.
	offlineBound = 5 * time.Second
)

// FleetConfig says what a fleet is.
type FleetConfig struct {
	Owner *Owner
	Count int
	// Slot is how long each play lasts, in whole seconds.
	Slot time.Duration
	// Doors are the addresses, host:port, to which displays may connect now. It is
	// asked again and again; while it fails they stay what they were.
	Doors func(context.Context) ([]string, error)
	// Gateways have the media of what is booked, as URLs; none when nothing is.
	Gateways []string
	// Connected is how many of the fleet's displays are connected, as the platform
	// has it.
	Connected func(context.Context) (int, error)
}

// Fleet is many displays of one process of the player, which outlives what is done
// to the platform. What it played is in its logs, and compared with what was
// counted.
type Fleet struct {
	// IDs are the devices.
	IDs []string

	cfg                    FleetConfig
	program, dir           string
	credentials, addresses string // files
	process                *exec.Cmd
	exited                 chan error
	logs                   []string
	kills                  int
	heard                  Heard
}

// Each does something for all of a list, several at once.
func Each[T any](list []T, do func(int, T) error) error {
	places := make(chan struct{}, fleetCallers)
	errs := make([]error, len(list))
	var all sync.WaitGroup
	for i, item := range list {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			errs[i] = do(i, item)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// DisplaySettings are a device's whose slots are so long, in whole seconds.
func DisplaySettings(name string, slot time.Duration) map[string]any {
	seconds := int(slot / time.Second)
	return map[string]any{
		"name": name, "place": map[string]any{"latitude": 48.35, "longitude": 11.79}, "venueType": "transit.airports.gates",
		"screen": map[string]any{"widthPx": 1080, "heightPx": 1920}, "loopLengthSeconds": 2 * seconds, "slotLengthSeconds": seconds,
		"slotPrice": map[string]any{"amountMinor": 250, "currency": "EUR"}, "timeZone": "Europe/Berlin",
	}
}

// NewFleet enrols the displays and builds their player.
func NewFleet(ctx context.Context, t testing.TB, cfg FleetConfig) *Fleet {
	t.Helper()
	built, err := release.Build(ctx, "player")
	require.NoError(t, err)
	dir := t.TempDir()
	f := &Fleet{
		IDs: make([]string, cfg.Count), cfg: cfg, program: built["player"].Path, dir: filepath.Join(dir, "kept"),
		credentials: filepath.Join(dir, "credentials"), addresses: filepath.Join(dir, "addresses"),
		heard: Heard{Played: map[string]map[string]bool{}, Shows: map[string]string{}, Since: map[string]time.Time{}},
	}
	began := time.Now()
	lines, o := make([]string, cfg.Count), cfg.Owner
	// A player that the machine did not let run for a while shows an item for longer
	// than it lasts, which is no impossible play in a slot that is longer.
	slot := cfg.Slot + 5*time.Second
	require.NoError(t, Each(lines, func(i int, _ string) error {
		id, secret, err := o.Enrol(ctx, fmt.Sprintf("device-%06d", i), DisplaySettings(fmt.Sprintf("Display %d", i), slot))
		if err != nil {
			return err
		}
		f.IDs[i], lines[i] = id, id+" "+secret
		return nil
	}))
	require.NoError(t, os.WriteFile(f.credentials, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	t.Logf("%d displays enrolled in %.1f s", cfg.Count, time.Since(began).Seconds())
	return f
}

// Show has all displays play one creative over and over, or nothing when it is "".
// Its media are at address, where the last part of the path is their SHA-256.
func (f *Fleet) Show(ctx context.Context, creative, address string) error {
	items := []any{}
	if creative != "" {
		items = append(items, map[string]any{
			"creativeId": creative, "url": address, "sha256": address[strings.LastIndexByte(address, '/')+1:], "mediaType": "text/plain",
			"durationMs": f.cfg.Slot.Milliseconds(),
		})
	}
	return Each(f.IDs, func(_ int, id string) error {
		return f.cfg.Owner.Call(ctx, http.MethodPut, f.cfg.Owner.On("/"+id+"/playlist"), map[string]any{"items": items}, nil)
	})
}

// Run follows the doors and starts the player, both until the test ends, and waits
// until all displays are connected.
func (f *Fleet) Run(ctx context.Context, t testing.TB) {
	t.Helper()
	t.Cleanup(f.follow(ctx, t))
	f.Start(t)
	t.Cleanup(func() {
		if f.exited != nil {
			_ = f.process.Process.Kill()
			<-f.exited //nolint:errcheck // it was killed
		}
		if t.Failed() {
			const tail = 16 << 10
			text, _ := os.ReadFile(f.says()) // absent when it said nothing
			t.Logf("what the displays said last:\n%s", text[max(0, len(text)-tail):])
		}
	})
	f.Online(ctx, t, "started")
}

// says is the file with what the displays say of their connections.
func (f *Fleet) says() string { return filepath.Join(filepath.Dir(f.dir), "says") }

// follow keeps the file with the doors' addresses as they are, until ctx ends.
func (f *Fleet) follow(ctx context.Context, t testing.TB) (stop func()) {
	t.Helper()
	write := func() error {
		found, err := f.cfg.Doors(ctx)
		if err != nil {
			return err
		}
		return files.Replace(f.addresses, []byte(strings.Join(found, "\n")+"\n"), 0o600)
	}
	require.NoError(t, write())
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(200 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
				_ = write() // what is there stays
			}
		}
	}()
	return func() { cancel(); <-done }
}

// Start starts the player, on what it kept.
func (f *Fleet) Start(t testing.TB) {
	t.Helper()
	log, err := os.Create(filepath.Join(filepath.Dir(f.dir), fmt.Sprintf("log-%d", len(f.logs))))
	require.NoError(t, err)
	defer log.Close()
	f.logs = append(f.logs, log.Name())
	args := []string{"--dir", f.dir, "--credentials", f.credentials, "--server-file", f.addresses, "--each"}
	if len(f.cfg.Gateways) > 0 {
		args = append(args, "--gateway", strings.Join(f.cfg.Gateways, ","))
	}
	f.process = exec.Command(f.program, args...) //nolint:gosec,noctx // our own binary, which End ends
	says, err := os.OpenFile(f.says(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	require.NoError(t, err)
	defer says.Close()
	f.process.Stdout, f.process.Stderr = log, says
	f.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	process, started, exited := f.process, make(chan error, 1), make(chan error, 1)
	go func() {
		// Pdeathsig is sent when the thread ends that started the process.
		runtime.LockOSThread()
		err := process.Start()
		started <- err
		if err == nil {
			exited <- process.Wait()
		}
	}()
	require.NoError(t, <-started)
	f.exited = exited
}

// Kill kills the player, and starts it again on what it kept.
func (f *Fleet) Kill(t testing.TB) {
	t.Helper()
	require.Error(t, f.End(t, syscall.SIGKILL))
	f.kills++
	f.Start(t)
}

// End ends the player with a signal, and waits for it.
func (f *Fleet) End(t testing.TB, signal syscall.Signal) error {
	t.Helper()
	require.NoError(t, f.process.Process.Signal(signal))
	select {
	case err := <-f.exited:
		f.exited = nil
		return err
	case <-time.After(30 * time.Second):
		require.Fail(t, "the player does not end")
		return nil
	}
}

var (
	playedLine = regexp.MustCompile(`^\S+ (dev_\w+) played \S+ for \S+: (\w{26})$`)
	showsLine  = regexp.MustCompile(`^\S+ (dev_\w+) shows (\S+)`)
	fleetLine  = regexp.MustCompile(`displays: (\d+) connected, .* (\d+) plays, (\d+) unsent, (\d+) held, (\d+) rejected, (\d+) LOST$`)
)

// Heard is what the player's logs say.
type Heard struct {
	// Played are the ids of the plays that it wrote down, by display, and Shows the
	// creative that each display began to show last, or nothing, which was heard Since.
	Played map[string]map[string]bool
	Shows  map[string]string
	Since  map[string]time.Time

	summaries int
	summary   []int   // the last: connected, plays, unsent, held, rejected, lost
	read      []int64 // of each log, in bytes
}

// Said reads what the logs have more than before.
func (f *Fleet) Said(t testing.TB) *Heard {
	t.Helper()
	h := &f.heard
	for i, name := range f.logs {
		if i == len(h.read) {
			h.read = append(h.read, 0)
		}
		log, err := os.Open(name)
		require.NoError(t, err)
		_, err = log.Seek(h.read[i], io.SeekStart)
		require.NoError(t, err)
		text, err := io.ReadAll(log)
		require.NoError(t, err)
		require.NoError(t, log.Close())
		whole := strings.LastIndexByte(string(text), '\n') + 1
		h.read[i] += int64(whole)
		for line := range strings.Lines(string(text[:whole])) {
			h.hear(t, strings.TrimSuffix(line, "\n"))
		}
	}
	return h
}

func (h *Heard) hear(t testing.TB, line string) {
	t.Helper()
	if m := playedLine.FindStringSubmatch(line); m != nil {
		if h.Played[m[1]] == nil {
			h.Played[m[1]] = map[string]bool{}
		}
		require.False(t, h.Played[m[1]][m[2]], "%s was played twice", m[2])
		h.Played[m[1]][m[2]] = true
	} else if m := showsLine.FindStringSubmatch(line); m != nil {
		if h.Shows[m[1]] != m[2] {
			h.Shows[m[1]], h.Since[m[1]] = m[2], time.Now()
		}
	} else if m := fleetLine.FindStringSubmatch(line); m != nil {
		h.summaries, h.summary = h.summaries+1, h.summary[:0]
		for _, text := range m[1:] {
			n, err := strconv.Atoi(text)
			require.NoError(t, err)
			h.summary = append(h.summary, n)
		}
	}
}

// Online waits until all displays are connected, as the platform has it.
func (f *Fleet) Online(ctx context.Context, t testing.TB, what string) {
	t.Helper()
	took := Eventually(ctx, t, 2*time.Minute, "all displays are connected", func() error {
		now, err := f.cfg.Connected(ctx)
		if err == nil && now != len(f.IDs) {
			err = fmt.Errorf("%d are", now)
		}
		return err
	})
	t.Logf("%s: all connected after %.1f s", what, took.Seconds())
}

// Settled waits until all displays are connected, as they themselves have it, with
// all plays handed in but those of the last seconds, and as the platform has it: a
// display may take long to notice that its connection leads nowhere. The player
// tells every five seconds.
func (f *Fleet) Settled(ctx context.Context, t testing.TB) {
	t.Helper()
	before := f.Said(t).summaries
	took := Eventually(ctx, t, 2*time.Minute, "all displays are connected, and shown so", func() error {
		said := f.Said(t)
		if said.summaries == before || said.summary[0] != len(f.IDs) || said.summary[2] > len(f.IDs) {
			return fmt.Errorf("connected, plays, unsent, held, rejected, lost: %v", said.summary)
		}
		shown, err := f.cfg.Connected(ctx)
		if err == nil && shown != len(f.IDs) {
			err = fmt.Errorf("all are connected, and %d are shown so", shown)
		}
		return err
	})
	t.Logf("all of %d displays are connected, and shown so, after %.1f s", len(f.IDs), took.Seconds())
}

// Showing waits until every display shows a creative, or nothing.
func (f *Fleet) Showing(ctx context.Context, t testing.TB, creative string) time.Duration {
	t.Helper()
	return Eventually(ctx, t, time.Minute, "every display shows "+creative, func() error {
		shows := f.Said(t).Shows
		for _, id := range f.IDs {
			if shows[id] != creative {
				return fmt.Errorf("%s shows %q", id, shows[id])
			}
		}
		return nil
	})
}

// Finish has the displays show nothing, waits until all plays are handed in, ends
// the player, and requires that every play that it wrote down is counted once and
// that no display is shown as connected.
func (f *Fleet) Finish(ctx context.Context, t testing.TB) {
	t.Helper()
	require.NoError(t, f.Show(ctx, "", ""))
	Eventually(ctx, t, time.Minute, "nothing is left to hand in", func() error {
		summary := f.Said(t).summary
		if len(summary) != 6 || summary[0] != len(f.IDs) || summary[2] != 0 || summary[3] != 0 {
			return fmt.Errorf("connected, plays, unsent, held, rejected, lost: %v", summary)
		}
		return nil
	})
	f.Showing(ctx, t, "nothing")
	require.NoError(t, f.End(t, syscall.SIGTERM))
	offline := Eventually(ctx, t, offlineBound, "no display is connected", func() error {
		now, err := f.cfg.Connected(ctx)
		if err == nil && now != 0 {
			err = fmt.Errorf("%d are", now)
		}
		return err
	})

	said := f.Said(t)
	require.Zero(t, said.summary[2]+said.summary[3], "plays were not handed in")
	require.Zero(t, said.summary[4], "plays were refused")
	require.Zero(t, said.summary[5], "plays were lost")
	written, stored := 0, make([]int, len(f.IDs))
	require.NoError(t, Each(f.IDs, func(i int, id string) error {
		var found struct {
			Hours []struct {
				Plays int `json:"plays,string"`
			}
		}
		err := f.cfg.Owner.Call(ctx, http.MethodGet, f.cfg.Owner.On("/"+id+"/plays"), nil, &found)
		for _, hour := range found.Hours {
			stored[i] += hour.Plays
		}
		return err
	}))
	total := 0
	for i, id := range f.IDs {
		written, total = written+len(said.Played[id]), total+stored[i]
		require.GreaterOrEqual(t, stored[i], len(said.Played[id]), "plays of %s are missing", id)
		// Of what it writes down last, one that is killed does not get to tell.
		require.LessOrEqual(t, stored[i], len(said.Played[id])+f.kills, "plays of %s are counted that it did not make", id)
	}
	require.NotZero(t, written)
	t.Logf("%d displays: %d plays written down, %d counted; offline %.1f s after the end", len(f.IDs), written, total, offline.Seconds())
}
