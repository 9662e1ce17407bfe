package e2e

import (
	"bufio"
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

// show has all displays play one creative over and over, or nothing.
func (f *fleet) show(ctx context.Context, creative, name string, length time.Duration) error {
	gateways, _, err := stack.Gateways(ctx, the.Cluster().Consul(), 0)
	if err != nil {
		return err
	}
	items := []any{}
	if creative != "" {
		items = append(items, map[string]any{
			"creativeId": creative, "url": "http://" + gateways[0].HTTP + "/v1/media/" + name, "sha256": name, "mediaType": "text/plain", "durationMs": length.Milliseconds(),
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
	showsLine  = regexp.MustCompile(`^\S+ (dev_\w+) shows (\S+) for`)
	fleetLine  = regexp.MustCompile(`displays: (\d+) connected, .* (\d+) plays, (\d+) unsent, (\d+) held, (\d+) rejected, (\d+) LOST$`)
)

// said is what the player's logs say: the plays that it wrote down, by display;
// what each display began to show last; and the last summary.
func (f *fleet) said(t *testing.T) (played map[string]map[string]bool, shows map[string]string, summary []int) {
	t.Helper()
	played, shows = map[string]map[string]bool{}, map[string]string{}
	for _, name := range f.logs {
		log, err := os.Open(name)
		require.NoError(t, err)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			if m := playedLine.FindStringSubmatch(lines.Text()); m != nil {
				if played[m[1]] == nil {
					played[m[1]] = map[string]bool{}
				}
				require.False(t, played[m[1]][m[2]], "%s was played twice", m[2])
				played[m[1]][m[2]] = true
			} else if m := showsLine.FindStringSubmatch(lines.Text()); m != nil {
				shows[m[1]] = m[2]
			} else if m := fleetLine.FindStringSubmatch(lines.Text()); m != nil {
				summary = summary[:0]
				for _, text := range m[1:] {
					n, err := strconv.Atoi(text)
					require.NoError(t, err)
					summary = append(summary, n)
				}
			}
		}
		require.NoError(t, log.Close())
	}
	return played, shows, summary
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

// Displays play on through everything that goes away, and hand in later: every
// play that the player wrote down is counted once.
func TestOutage(t *testing.T) {
	count := devicesDefault
	if text := os.Getenv(devicesVariable); text != "" {
		var err error
		count, err = strconv.Atoi(text)
		require.NoError(t, err, devicesVariable)
	}
	ctx := begin(t, 8*time.Minute)
	slotSeconds := max(1, count/playsASecond)
	slot := time.Duration(slotSeconds) * time.Second
	o := newOwner(t, ctx)
	o.doors = followDoors(t, ctx) // gateways are rolled, to other ports
	before, err := connected(ctx)
	require.NoError(t, err)
	began := time.Now()
	f := newFleet(t, ctx, o, count, slotSeconds)
	t.Logf("%d displays enrolled in %.1f s", count, time.Since(began).Seconds())
	first, second := uploadText(t, ctx, o, "the first"), uploadText(t, ctx, o, "the second")
	require.NoError(t, f.show(ctx, "first", first, slot))
	defer f.follow(t, ctx)()
	f.start(t)
	t.Cleanup(func() {
		if f.exited != nil {
			_ = f.process.Process.Kill()
			<-f.exited
		}
	})
	online := func(what string) {
		t.Helper()
		took := scenario.Eventually(ctx, t, 2*time.Minute, "all displays are connected", func() error {
			now, err := connected(ctx)
			if err == nil && now-before != count {
				err = fmt.Errorf("%d are", now-before)
			}
			return err
		})
		t.Logf("%s: all connected after %.1f s", what, took.Seconds())
	}
	online("started")

	for service, program := range map[string]string{"device": "deviced", "gateway": "gatewayd"} {
		recovery(t, ctx, service, program, 2, kill(t, program, 1))
		online("one of two of " + service + " killed")
		// The same with other resources is another version.
		for _, err := range deployAtOnce(t, ctx, []*jobs.Job{loadJob(t, ctx, service, map[string]string{service + "_cpu": strconv.Itoa(101 + rand.IntN(50))})}) {
			require.NoError(t, err)
		}
		online(service + " rolled")
	}

	kill(t, "natsd", 1)
	require.NoError(t, the.Jobs().Stop(ctx, "nats", false))
	require.NoError(t, f.show(ctx, "second", second, slot), "playlists without NATS")
	pause(t, ctx, outage)
	_, err = the.Deploy(ctx, "nats", nil)
	require.NoError(t, err)

	database := postgresProcesses(t, "device-db")
	signalAll(t, database, syscall.SIGSTOP)
	thaw := sync.OnceFunc(func() { signalAll(t, database, syscall.SIGCONT) })
	defer thaw()
	pause(t, ctx, outage)
	thaw()
	online("Postgres frozen for " + outage.String())

	for range 3 {
		pause(t, ctx, time.Duration(500+rand.IntN(1500))*time.Millisecond)
		require.Error(t, f.end(t, syscall.SIGKILL))
		f.kills++
		f.start(t)
	}
	online("the player killed three times")
	scenario.Eventually(ctx, t, time.Minute, "every display shows the second playlist", func() error {
		_, shows, _ := f.said(t)
		for _, id := range f.ids {
			if shows[id] != "second" {
				return fmt.Errorf("%s shows %q", id, shows[id])
			}
		}
		return nil
	})

	require.NoError(t, f.show(ctx, "", "", 0))
	scenario.Eventually(ctx, t, time.Minute, "nothing is left to hand in", func() error {
		_, _, summary := f.said(t)
		if len(summary) != 6 || summary[0] != count || summary[2] != 0 || summary[3] != 0 {
			return fmt.Errorf("connected, plays, unsent, held, rejected, lost: %v", summary)
		}
		return nil
	})
	// The summary may be from before the last display stopped.
	pause(t, ctx, slot)
	require.NoError(t, f.end(t, syscall.SIGTERM))
	offline := scenario.Eventually(ctx, t, 5*time.Second, "no display is connected", func() error {
		now, err := connected(ctx)
		if err == nil && now != before {
			err = fmt.Errorf("%d are", now-before)
		}
		return err
	})

	played, _, summary := f.said(t)
	require.Zero(t, summary[4], "plays were refused")
	require.Zero(t, summary[5], "plays were lost")
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
