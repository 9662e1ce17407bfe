package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/files"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/stack"
	"github.com/marquee-ads/marquee/platform/tools"
)

const (
	// devicesVariable says how many displays TestOutage has, for example 2000.
	devicesVariable = "MARQUEE_E2E_DEVICES"
	devicesDefault  = 100
	// outage is how long NATS and Postgres are away.
	outage = 5 * time.Second
	// playsASecond is about how many plays all displays make together.
	playsASecond = 200
	// fleetCallers is how many calls at once set a fleet up.
	fleetCallers = 16
)

// fleet is many displays of one process of the player.
type fleet struct {
	owner                  *owner
	ids                    []string
	program, dir           string
	credentials, addresses string // files
	process                *exec.Cmd
	exited                 chan error
	logs                   []string
	kills                  int
	slot                   time.Duration
	before                 int // players of others that are connected
	heard                  heard
}

// each does something for all of a list, several at once.
func each[T any](list []T, do func(int, T) error) error {
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

// call is do for where a test may not fail: beside it.
func (o *owner) call(ctx context.Context, method, path string, body, out any) error {
	_, err := o.doors.REST.Do(ctx, load.Request{
		Method: method, Path: path, Token: o.token, Body: body, Idempotent: method == http.MethodGet || method == http.MethodPut,
	}, out)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// newFleet enrols so many displays whose slots last so many seconds, and builds
// their player.
func newFleet(t *testing.T, ctx context.Context, o *owner, count, slotSeconds int) *fleet {
	t.Helper()
	root, err := tools.Root()
	require.NoError(t, err)
	dir := t.TempDir()
	f := &fleet{
		owner: o, ids: make([]string, count), program: filepath.Join(dir, "player"), dir: filepath.Join(dir, "kept"),
		credentials: filepath.Join(dir, "credentials"), addresses: filepath.Join(dir, "addresses"),
		heard: heard{played: map[string]map[string]bool{}, shows: map[string]string{}},
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", f.program, "./services/device/cmd/player")
	build.Dir = root
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	lines := make([]string, count)
	require.NoError(t, each(lines, func(i int, _ string) error {
		var made struct{ Device struct{ DeviceID string } }
		if err := o.call(ctx, http.MethodPost, o.on(""), map[string]any{"requestId": fmt.Sprintf("device-%06d", i), "settings": map[string]any{
			"name": fmt.Sprintf("Display %d", i), "place": map[string]any{"latitude": 48.35, "longitude": 11.79}, "venueType": "transit.airports.gates",
			"screen": map[string]any{"widthPx": 1080, "heightPx": 1920}, "loopLengthSeconds": 2 * slotSeconds, "slotLengthSeconds": slotSeconds,
			"slotPrice": map[string]any{"amountMinor": 250, "currency": "EUR"}, "timeZone": "Europe/Berlin",
		}}, &made); err != nil {
			return err
		}
		f.ids[i] = made.Device.DeviceID
		var code struct{ ClaimCode string }
		if err := o.call(ctx, http.MethodPost, o.on("/"+f.ids[i]+"/claim-code"), struct{}{}, &code); err != nil {
			return err
		}
		var claimed struct{ Credentials struct{ Secret string } }
		if err := o.call(ctx, http.MethodPost, "/v1/devices:claim", map[string]string{"claimCode": code.ClaimCode}, &claimed); err != nil {
			return err
		}
		lines[i] = f.ids[i] + " " + claimed.Credentials.Secret
		return nil
	}))
	require.NoError(t, os.WriteFile(f.credentials, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	return f
}

// show has all displays play one creative, whose media have this name, over and
// over, or nothing.
func (f *fleet) show(ctx context.Context, creative, name string) error {
	gateways, _, err := stack.Gateways(ctx, the.Cluster().Consul(), 0)
	if err != nil {
		return err
	}
	items := []any{}
	if creative != "" {
		items = append(items, map[string]any{
			"creativeId": creative, "url": "http://" + gateways[0].HTTP + "/v1/media/" + name, "sha256": name, "mediaType": "text/plain", "durationMs": f.slot.Milliseconds(),
		})
	}
	return each(f.ids, func(_ int, id string) error {
		return f.owner.call(ctx, http.MethodPut, f.owner.on("/"+id+"/playlist"), map[string]any{"items": items}, nil)
	})
}

// follow keeps the file with the gateways' doors as they are, until ctx ends.
func (f *fleet) follow(t *testing.T, ctx context.Context) (stop func()) {
	t.Helper()
	write := func() error {
		found, _, err := stack.Gateways(ctx, the.Cluster().Consul(), 0)
		if err != nil {
			return err
		}
		var list []string
		for _, g := range found {
			list = append(list, g.Devices)
		}
		return files.Replace(f.addresses, []byte(strings.Join(list, "\n")+"\n"), 0o600)
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
				_ = write() // what is there stays until Consul answers
			}
		}
	}()
	return func() { cancel(); <-done }
}

// start starts the player, on what it kept.
func (f *fleet) start(t *testing.T) {
	t.Helper()
	log, err := os.Create(filepath.Join(filepath.Dir(f.dir), fmt.Sprintf("log-%d", len(f.logs))))
	require.NoError(t, err)
	defer log.Close()
	f.logs = append(f.logs, log.Name())
	f.process = exec.Command(f.program, "--dir", f.dir, "--credentials", f.credentials, "--server-file", f.addresses, "--each")
	f.process.Stdout, f.process.Stderr = log, io.Discard
	f.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, f.process.Start())
	process, exited := f.process, make(chan error, 1)
	go func() { exited <- process.Wait() }()
	f.exited = exited
}

// end ends the player with a signal, and waits for it.
func (f *fleet) end(t *testing.T, signal syscall.Signal) error {
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

// heard is what the player's logs say: the plays that it wrote down, by display;
// what each display began to show last; and the last summary.
type heard struct {
	played  map[string]map[string]bool
	shows   map[string]string
	summary []int
	read    []int64 // of each log, in bytes
}

// said reads what the logs have more than before.
func (f *fleet) said(t *testing.T) *heard {
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

func (h *heard) hear(t *testing.T, line string) {
	t.Helper()
	if m := playedLine.FindStringSubmatch(line); m != nil {
		if h.played[m[1]] == nil {
			h.played[m[1]] = map[string]bool{}
		}
		require.False(t, h.played[m[1]][m[2]], "%s was played twice", m[2])
		h.played[m[1]][m[2]] = true
	} else if m := showsLine.FindStringSubmatch(line); m != nil {
		h.shows[m[1]] = m[2]
	} else if m := fleetLine.FindStringSubmatch(line); m != nil {
		h.summary = h.summary[:0]
		for _, text := range m[1:] {
			n, err := strconv.Atoi(text)
			require.NoError(t, err)
			h.summary = append(h.summary, n)
		}
	}
}

// connected is how many displays are connected, to all instances together.
func connected(ctx context.Context) (int, error) {
	where, err := players(ctx)
	total := 0
	for _, n := range where {
		total += n
	}
	return total, err
}

// uploadText uploads text through the door for media and returns its name there.
func uploadText(t *testing.T, ctx context.Context, o *owner, content string) string {
	t.Helper()
	gateways, _ := bothGateways(t, ctx)
	sum := sha256.Sum256([]byte(content))
	name := hex.EncodeToString(sum[:])
	send := func(method, path string, body io.Reader, status int, header map[string]string) *http.Response {
		request, err := http.NewRequestWithContext(ctx, method, "http://"+gateways[0].HTTP+path, body)
		require.NoError(t, err)
		request.Header.Set("Authorization", "Bearer "+o.token)
		request.Header.Set("Tus-Resumable", "1.0.0")
		for name, value := range header {
			request.Header.Set(name, value)
		}
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.Equal(t, status, response.StatusCode, "%s %s: %s", method, path, text)
		return response
	}
	upload, err := send(http.MethodPost, "/v1/media/uploads?organisation_id="+o.organisation, http.NoBody, http.StatusCreated, map[string]string{
		"Upload-Length": strconv.Itoa(len(content)), "Upload-Metadata": "sha256 " + base64.StdEncoding.EncodeToString([]byte(name)),
	}).Location()
	require.NoError(t, err)
	send(http.MethodPatch, upload.Path, strings.NewReader(content), http.StatusNoContent, map[string]string{
		"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0",
	})
	return name
}

// runFleet enrols a fleet, has it play "first", and waits until all of it is
// connected. It ends with the test.
func runFleet(t *testing.T, ctx context.Context) *fleet {
	t.Helper()
	count := devicesDefault
	if text := os.Getenv(devicesVariable); text != "" {
		var err error
		count, err = strconv.Atoi(text)
		require.NoError(t, err, devicesVariable)
	}
	slotSeconds := max(1, count/playsASecond)
	o := newOwner(t, ctx)
	o.doors = followDoors(t, ctx) // gateways are rolled, to other ports
	before, err := connected(ctx)
	require.NoError(t, err)
	began := time.Now()
	f := newFleet(t, ctx, o, count, slotSeconds)
	f.slot, f.before = time.Duration(slotSeconds)*time.Second, before
	t.Logf("%d displays enrolled in %.1f s", count, time.Since(began).Seconds())
	require.NoError(t, f.show(ctx, "first", uploadText(t, ctx, o, "the first")))
	t.Cleanup(f.follow(t, ctx))
	f.start(t)
	t.Cleanup(func() {
		if f.exited != nil {
			_ = f.process.Process.Kill()
			<-f.exited
		}
	})
	f.online(t, ctx, "started")
	return f
}

// online waits until all displays are connected.
func (f *fleet) online(t *testing.T, ctx context.Context, what string) {
	t.Helper()
	took := scenario.Eventually(ctx, t, 2*time.Minute, "all displays are connected", func() error {
		now, err := connected(ctx)
		if err == nil && now-f.before != len(f.ids) {
			err = fmt.Errorf("%d are", now-f.before)
		}
		return err
	})
	t.Logf("%s: all connected after %.1f s", what, took.Seconds())
}

// showing waits until every display shows a creative, or nothing.
func (f *fleet) showing(t *testing.T, ctx context.Context, creative string) time.Duration {
	t.Helper()
	return scenario.Eventually(ctx, t, time.Minute, "every display shows "+creative, func() error {
		shows := f.said(t).shows
		for _, id := range f.ids {
			if shows[id] != creative {
				return fmt.Errorf("%s shows %q", id, shows[id])
			}
		}
		return nil
	})
}

// Displays play on through everything that goes away, and hand in later: every
// play that the player wrote down is counted once.
func TestOutage(t *testing.T) {
	ctx := begin(t, 8*time.Minute)
	f := runFleet(t, ctx)
	o, count := f.owner, len(f.ids)
	for service, program := range map[string]string{"device": "deviced", "gateway": "gatewayd"} {
		recovery(t, ctx, service, program, 2, kill(t, program, 1))
		f.online(t, ctx, "one of two of "+service+" killed")
		// The same with other resources is another version.
		for _, err := range deployAtOnce(t, ctx, []*jobs.Job{loadJob(t, ctx, service, map[string]string{service + "_cpu": strconv.Itoa(101 + rand.IntN(50))})}) {
			require.NoError(t, err)
		}
		f.online(t, ctx, service+" rolled")
	}

	kill(t, "natsd", 1)
	require.NoError(t, the.Jobs().Stop(ctx, "nats", false))
	require.NoError(t, f.show(ctx, "second", uploadText(t, ctx, o, "the second")), "playlists without NATS")
	pause(t, ctx, outage)
	_, err := the.Deploy(ctx, "nats", nil)
	require.NoError(t, err)

	database := postgresProcesses(t, "device-db")
	signalAll(t, database, syscall.SIGSTOP)
	thaw := sync.OnceFunc(func() { signalAll(t, database, syscall.SIGCONT) })
	defer thaw()
	pause(t, ctx, outage)
	thaw()
	f.online(t, ctx, "Postgres frozen for "+outage.String())

	for range 3 {
		pause(t, ctx, time.Duration(500+rand.IntN(1500))*time.Millisecond)
		require.Error(t, f.end(t, syscall.SIGKILL))
		f.kills++
		f.start(t)
	}
	f.online(t, ctx, "the player killed three times")
	f.showing(t, ctx, "second")

	require.NoError(t, f.show(ctx, "", ""))
	scenario.Eventually(ctx, t, time.Minute, "nothing is left to hand in", func() error {
		summary := f.said(t).summary
		if len(summary) != 6 || summary[0] != count || summary[2] != 0 || summary[3] != 0 {
			return fmt.Errorf("connected, plays, unsent, held, rejected, lost: %v", summary)
		}
		return nil
	})
	// The summary may be from before the last display stopped.
	pause(t, ctx, f.slot)
	require.NoError(t, f.end(t, syscall.SIGTERM))
	offline := scenario.Eventually(ctx, t, 5*time.Second, "no display is connected", func() error {
		now, err := connected(ctx)
		if err == nil && now != f.before {
			err = fmt.Errorf("%d are", now-f.before)
		}
		return err
	})

	said := f.said(t)
	played := said.played
	require.Zero(t, said.summary[4], "plays were refused")
	require.Zero(t, said.summary[5], "plays were lost")
	written, stored := 0, make([]int, count)
	require.NoError(t, each(f.ids, func(i int, id string) error {
		var found struct {
			Hours []struct {
				Plays int `json:"plays,string"`
			}
		}
		err := o.call(ctx, http.MethodGet, o.on("/"+id+"/plays"), nil, &found)
		for _, hour := range found.Hours {
			stored[i] += hour.Plays
		}
		return err
	}))
	total := 0
	for i, id := range f.ids {
		written, total = written+len(played[id]), total+stored[i]
		require.GreaterOrEqual(t, stored[i], len(played[id]), "plays of %s are missing", id)
		// Of what it writes down last, one that is killed does not get to tell.
		require.LessOrEqual(t, stored[i], len(played[id])+f.kills, "plays of %s are counted that it did not make", id)
	}
	require.NotZero(t, written)
	t.Logf("%d displays: %d plays written down, %d counted; offline %.1f s after the end", count, written, total, offline.Seconds())
}

// A takedown and another playlist reach every display that is connected.
func TestFanOut(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	f := runFleet(t, ctx)
	o := f.owner
	f.showing(t, ctx, "first")
	var group struct{ Group struct{ GroupID string } }
	o.do(t, ctx, http.MethodPost, "/v1/organisations/"+o.organisation+"/groups", map[string]string{"requestId": "the-group", "name": "All of them"}, &group)
	path := "/v1/organisations/" + o.organisation + "/groups/" + group.Group.GroupID
	for some := range slices.Chunk(f.ids, 500) {
		o.do(t, ctx, http.MethodPost, path+"/devices:add", map[string]any{"deviceIds": some}, nil)
	}

	began := time.Now()
	type command struct {
		Command struct {
			GroupCommandID string
			DeviceCount    int
			Counts         []struct {
				State string
				Count int
			}
		}
	}
	var sent command
	o.do(t, ctx, http.MethodPost, path+"/commands", map[string]string{"requestId": "takedown", "kind": "COMMAND_KIND_TAKEDOWN", "creativeId": "first"}, &sent)
	require.Equal(t, len(f.ids), sent.Command.DeviceCount)
	asked := time.Since(began)
	scenario.Eventually(ctx, t, time.Minute, "every display has taken it down", func() error {
		var now command
		if err := o.call(ctx, http.MethodGet, path+"/commands/"+sent.Command.GroupCommandID, nil, &now); err != nil {
			return err
		}
		if counts := now.Command.Counts; len(counts) != 1 || counts[0].State != "COMMAND_STATE_DONE" || counts[0].Count != len(f.ids) {
			return fmt.Errorf("%v", counts)
		}
		return nil
	})
	t.Logf("a takedown was on all of %d displays, and their answers stored, %s after it was asked for; the call took %s",
		len(f.ids), time.Since(began).Round(time.Millisecond), asked.Round(time.Millisecond))
	f.showing(t, ctx, "nothing")

	second := uploadText(t, ctx, o, "the second")
	began = time.Now()
	require.NoError(t, f.show(ctx, "second", second))
	put := time.Since(began)
	last := f.showing(t, ctx, "second")
	t.Logf("another playlist for each: %s for the calls; the last display shows it, with its media, %s after the last of them",
		put.Round(time.Millisecond), last.Round(time.Millisecond))
	require.NoError(t, f.end(t, syscall.SIGTERM))
}
