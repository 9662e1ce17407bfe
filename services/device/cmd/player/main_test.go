package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/files"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/platform/pgtest"
	"github.com/marquee-ads/marquee/services/device"
	"github.com/marquee-ads/marquee/services/device/mqtt"
	"github.com/marquee-ads/marquee/services/device/player"
	"github.com/marquee-ads/marquee/services/device/postgres/postgrestest"
)

var pg pgtest.Server

// asPlayer makes the test's own program the player, which tests kill.
const asPlayer = "RUN_AS_PLAYER"

func TestMain(m *testing.M) {
	if os.Getenv(asPlayer) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(pg.Main(m))
}

const (
	organisation = "org_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	patience     = 15 * time.Second
)

// world is what deviced is made of, on a real database, with a gateway that trades
// claim codes as docs/device-protocol.md says, and media.
type world struct {
	*device.Service
	plane          *device.Plane
	db             *database.Database
	address        string // where players connect, also while nothing is there
	encryption     *tls.Config
	gateway, media *httptest.Server

	mu       sync.Mutex
	contents map[string][]byte
	broken   map[string]bool // those that are cut off in the middle
}

func newWorld(t *testing.T) *world {
	t.Helper()
	store, db := postgrestest.New(t, &pg)
	w := &world{
		Service: device.New(store, device.DefaultThrottle(), time.Now, rand.Reader), db: db,
		contents: make(map[string][]byte), broken: make(map[string]bool),
	}
	w.gateway = httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet {
			w.content(out, req)
			return
		}
		w.claim(out, req)
	}))
	t.Cleanup(w.gateway.Close)
	w.media = httptest.NewServer(http.HandlerFunc(w.content))
	t.Cleanup(w.media.Close)
	w.plane = device.NewPlane(store, "instance", time.Now, hclog.NewNullLogger())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.plane.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return w
}

// serve lets players in until the test ends, or the result is called.
func (w *world) serve(t *testing.T) (stop func()) {
	t.Helper()
	if w.address == "" {
		w.address = "127.0.0.1:0"
	}
	broker, err := mqtt.NewBroker(w.plane, mqtt.DefaultLimits(), mqtt.NewRefused(), hclog.NewNullLogger())
	require.NoError(t, err)
	port, err := net.Listen("tcp", w.address)
	require.NoError(t, err)
	w.address = port.Addr().String()
	listener := mqtt.NewListener([]mqtt.Port{{Listener: port}}, w.encryption, broker, mqtt.DefaultLimits(), mqtt.NewRefused(), hclog.NewNullLogger())
	served := make(chan struct{})
	go func() {
		defer close(served)
		listener.Serve()
	}()
	stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, listener.Close(ctx))
		<-served
	})
	t.Cleanup(stop)
	return stop
}

func (w *world) claim(out http.ResponseWriter, req *http.Request) {
	var body struct {
		ClaimCode string `json:"claimCode"`
	}
	if req.Method != http.MethodPost || req.URL.Path != "/v1/devices:claim" || json.NewDecoder(req.Body).Decode(&body) != nil {
		http.Error(out, "no such method", http.StatusNotFound)
		return
	}
	c, err := w.Claim(req.Context(), body.ClaimCode, "")
	switch {
	case errors.Is(err, device.ErrClaimCodeInvalid):
		http.Error(out, `{"reason":"CLAIM_CODE_INVALID"}`, http.StatusUnauthorized)
	case err != nil:
		http.Error(out, err.Error(), http.StatusInternalServerError)
	default:
		fmt.Fprintf(out, `{"credentials":{"deviceId":%q,"secret":%q}}`, c.DeviceID, c.Secret)
	}
}

func (w *world) content(out http.ResponseWriter, req *http.Request) {
	w.mu.Lock()
	content, found := w.contents[req.URL.Path]
	broken := w.broken[req.URL.Path]
	w.mu.Unlock()
	if !found {
		http.NotFound(out, req)
		return
	}
	out.Header().Set("ETag", `"one"`)
	if broken && req.Header.Get("Range") == "" {
		out.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = out.Write(content[:len(content)/2])
		panic(http.ErrAbortHandler)
	}
	http.ServeContent(out, req, "", time.Time{}, bytes.NewReader(content))
}

// item is one to show, of a content that is there.
func (w *world) item(creative string, duration time.Duration, broken bool) device.Item {
	content := bytes.Repeat([]byte(creative+" "), 20_000)
	w.mu.Lock()
	w.contents["/"+creative], w.broken["/"+creative] = content, broken
	w.mu.Unlock()
	sum := sha256.Sum256(content)
	return device.Item{
		CreativeID: creative, URL: w.media.URL + "/" + creative, SHA256: hex.EncodeToString(sum[:]), MediaType: "image/png", DurationMS: int(duration.Milliseconds()),
	}
}

func (w *world) put(t *testing.T, id string, items ...device.Item) int64 {
	t.Helper()
	p, err := w.PutPlaylist(t.Context(), organisation, id, items)
	require.NoError(t, err)
	return p.Version
}

func (w *world) create(t *testing.T, name string) (id, code string) {
	t.Helper()
	made, err := w.Create(t.Context(), "acc_1", "request-"+name, organisation, device.Settings{
		Name: "one", VenueType: "retail.malls", Screen: device.Screen{Width: 1, Height: 1}, LoopLength: time.Minute, SlotLength: 10 * time.Second,
		SlotPrice: device.Price{Currency: "EUR"}, TimeZone: "UTC",
	})
	require.NoError(t, err)
	code, _, err = w.CreateClaimCode(t.Context(), organisation, made.ID)
	require.NoError(t, err)
	return made.ID, code
}

// stored are the plays of a device on the server: id to creative.
func (w *world) stored(t *testing.T, id string) map[string]string {
	t.Helper()
	rows, err := w.db.Pool().Query(t.Context(), "SELECT play_id, creative_id FROM plays WHERE device_id = $1", id)
	require.NoError(t, err)
	found := make(map[string]string)
	var play, creative string
	_, err = pgx.ForEachRow(rows, []any{&play, &creative}, func() error {
		found[play] = creative
		return nil
	})
	require.NoError(t, err)
	return found
}

// sums are the plays of a device as operators see them, and how many counted.
func (w *world) sums(t *testing.T, id string) (plays, counted int64) {
	t.Helper()
	hours, next, err := w.ListPlays(t.Context(), organisation, id, device.Span{}, paging.Page{})
	require.NoError(t, err)
	require.Empty(t, next)
	for _, h := range hours {
		plays, counted = plays+h.Plays, counted+h.Counted
	}
	return plays, counted
}

func (w *world) rejected(t *testing.T) (n int64) {
	t.Helper()
	require.NoError(t, w.db.Pool().QueryRow(t.Context(), "SELECT count(*) FROM rejected_plays").Scan(&n))
	return n
}

// online is how many devices are connected.
func (w *world) online(t *testing.T) (n int) {
	t.Helper()
	require.NoError(t, w.db.Pool().QueryRow(t.Context(), "SELECT count(*) FROM presence WHERE disconnect_time IS NULL").Scan(&n))
	return n
}

// process is a running player.
type process struct {
	command *exec.Cmd
	ended   chan error

	mu  sync.Mutex
	out bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{ended: make(chan error, 1)}
	p.command = exec.CommandContext(t.Context(), os.Args[0], args...)
	p.command.Env = append(os.Environ(), asPlayer+"=1")
	p.command.Stdout, p.command.Stderr = p, p
	require.NoError(t, p.command.Start())
	go func() {
		p.ended <- p.command.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.command.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("player %v said:\n%s", args, p.output())
		}
	})
	return p
}

// signal ends the player, and returns its exit code; -1 when it was killed.
func (p *process) signal(t *testing.T, s os.Signal) int {
	t.Helper()
	require.NoError(t, p.command.Process.Signal(s))
	return p.wait(t)
}

func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.command.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("the player has not ended within %s", patience)
		return 0
	}
}

func (p *process) waitFor(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(p.output(), text) }, patience, 10*time.Millisecond, "the player never says %q", text)
}

var playedLine = regexp.MustCompile(`played (\S+) for \S+: ([0-9A-Z]{26})\n`)

// played are the plays that it said it has written down: id to creative.
func (p *process) played() map[string]string {
	found := make(map[string]string)
	for _, line := range playedLine.FindAllStringSubmatch(p.output(), -1) {
		found[line[2]] = line[1]
	}
	return found
}

// TestDisplay follows one display from its claim code to plays that were made without
// a network.
func TestDisplay(t *testing.T) {
	w := newWorld(t)
	stop := w.serve(t)
	id, code := w.create(t, "1")
	w.put(t, id, w.item("red", 300*time.Millisecond, false), w.item("blue", 200*time.Millisecond, true))
	dir := filepath.Join(t.TempDir(), "player")
	first := []string{"--dir", dir, "--server", "127.0.0.1:1," + w.address, "--gateway", "http://127.0.0.1:1," + w.gateway.URL, "--claim-code", strings.ToLower(code[:4] + "-" + code[4:])}

	p := start(t, first...)
	p.waitFor(t, "played blue")
	require.Zero(t, p.signal(t, os.Interrupt))
	all := p.played()
	require.Equal(t, all, w.stored(t, id), "after Ctrl-C all is handed in")
	plays, counted := w.sums(t, id)
	require.EqualValues(t, len(all), plays)
	require.GreaterOrEqual(t, counted, plays-1)
	require.NotContains(t, p.output(), "mqd_", "it prints its secret")
	kept, err := os.Stat(filepath.Join(dir, "player.json"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), kept.Mode().Perm())

	// Without a network it plays on, and needs nothing but its folder.
	stop()
	w.media.CloseClientConnections()
	w.mu.Lock()
	w.contents = make(map[string][]byte)
	w.mu.Unlock()
	p = start(t, "--dir", dir)
	p.waitFor(t, "played red")
	p.waitFor(t, "played blue")
	require.Equal(t, all, w.stored(t, id))
	require.Equal(t, 1, exitOf(t, "--dir", dir), "another player has the folder")
	require.Zero(t, p.signal(t, syscall.SIGTERM))
	for play, creative := range p.played() {
		all[play] = creative
	}

	// The flags of the first time do not claim again, and what was unsent is handed in.
	w.serve(t)
	p = start(t, first...)
	require.Eventually(t, func() bool { return len(w.stored(t, id)) > len(all) }, patience, 20*time.Millisecond, "no plays arrive")
	require.Zero(t, p.signal(t, os.Interrupt))
	for play, creative := range p.played() {
		all[play] = creative
	}
	require.Equal(t, all, w.stored(t, id))
	require.Zero(t, w.rejected(t))

	// A takedown is followed at once: the item is cut, and is no full play.
	w.put(t, id, w.item("long", 10*time.Second, false))
	p = start(t, "--dir", dir)
	p.waitFor(t, "shows long")
	began := time.Now()
	w.put(t, id)
	p.waitFor(t, "shows nothing")
	t.Logf("a takedown was followed %s after it was asked for", time.Since(began))
	require.Less(t, time.Since(began), 2*time.Second)
	p.waitFor(t, "played long")
	require.Zero(t, p.signal(t, os.Interrupt))

	// Revoked, it plays nothing, and says what to do.
	require.NoError(t, w.Revoke(t.Context(), organisation, id))
	p = start(t, "--dir", dir)
	p.waitFor(t, "have a claim code made")
	require.Zero(t, p.signal(t, os.Interrupt))
	// With a new code it is the same device again.
	code, _, err = w.CreateClaimCode(t.Context(), organisation, id)
	require.NoError(t, err)
	p = start(t, "--dir", dir, "--claim-code", code)
	p.waitFor(t, "connected to "+w.address)
	require.Zero(t, p.signal(t, os.Interrupt))
}

// exitOf is the exit code of a player that ends by itself.
func exitOf(t *testing.T, args ...string) int {
	t.Helper()
	p := start(t, args...)
	code := p.wait(t)
	t.Logf("%v: %s", args, p.output())
	return code
}

func TestExitCodes(t *testing.T) {
	w := newWorld(t)
	w.serve(t)
	dir := t.TempDir()
	wrong := filepath.Join(dir, "wrong.txt")
	require.NoError(t, os.WriteFile(wrong, []byte("# a comment\n\ndev_01ARZ3NDEKTSV4RRFFQ69G5FAV mqd_wrong\n"), 0o600))
	onlyID := filepath.Join(dir, "id.txt")
	require.NoError(t, os.WriteFile(onlyID, []byte("dev_01ARZ3NDEKTSV4RRFFQ69G5FAV\n"), 0o600))
	twice := filepath.Join(dir, "twice.txt")
	require.NoError(t, os.WriteFile(twice, bytes.Repeat([]byte("dev_01ARZ3NDEKTSV4RRFFQ69G5FAV mqd_wrong\n"), 2), 0o600))
	for name, c := range map[string]struct {
		code int
		text string
		args []string
	}{
		"Help":             {0, "claims a device once", []string{"--help"}},
		"ErrNoDir":         {exitUsage, "--dir: is needed", nil},
		"ErrUnknownFlag":   {exitUsage, "-colour", []string{"--colour"}},
		"ErrArgument":      {exitUsage, `"play" is no flag`, []string{"--dir", "a", "play"}},
		"ErrNoServer":      {exitUsage, "--server: is needed", []string{"--dir", dir + "/a", "--claim-code", "22222222"}},
		"ErrServer":        {exitUsage, `"nowhere" is no address`, []string{"--dir", dir + "/b", "--server", w.address + ",nowhere"}},
		"ErrTwoServers":    {exitUsage, "--server-file: it and --server exclude each other", []string{"--dir", dir + "/l", "--server", w.address, "--server-file", wrong}},
		"ErrServerFile":    {exitUsage, `"dev_01ARZ3NDEKTSV4RRFFQ69G5FAV" is no address`, []string{"--dir", dir + "/m", "--server-file", onlyID}},
		"ErrNoServerFile":  {exitUsage, "no such file", []string{"--dir", dir + "/n", "--server-file", dir + "/nothing"}},
		"ErrScheme":        {exitUsage, `"ws://a:1" is no address; use host:port, for example displays.example.com:1883, or mqtts://host:port`, []string{"--dir", dir + "/o", "--server", "ws://a:1"}},
		"ErrPath":          {exitUsage, `"mqtts://a:1/mqtt" is no address`, []string{"--dir", dir + "/p", "--server", "mqtts://a:1/mqtt"}},
		"ErrNoTLSCA":       {exitUsage, "--tls-ca: open", []string{"--dir", dir + "/q", "--server", w.address, "--tls-ca", dir + "/nothing"}},
		"ErrTLSCA":         {exitUsage, "--tls-ca: it has no certificate", []string{"--dir", dir + "/r", "--server", w.address, "--tls-ca", wrong}},
		"ErrNoCode":        {exitUsage, "--claim-code: is needed", []string{"--dir", dir + "/c", "--server", w.address}},
		"ErrNoGateway":     {exitUsage, "--gateway: is needed", []string{"--dir", dir + "/d", "--server", w.address, "--claim-code", "22222222"}},
		"ErrGateway":       {exitUsage, "is no URL", []string{"--dir", dir + "/e", "--server", w.address, "--claim-code", "22222222", "--gateway", "localhost:8080"}},
		"ErrTwoGateways":   {exitUsage, "--gateway-file: it and --gateway exclude each other", []string{"--dir", dir + "/s", "--server", w.address, "--gateway", "http://a", "--gateway-file", wrong}},
		"ErrGatewayFile":   {exitUsage, `is no URL; use for example`, []string{"--dir", dir + "/t", "--server", w.address, "--gateway-file", onlyID}},
		"ErrDevices":       {exitUsage, "needs --credentials", []string{"--dir", dir + "/f", "--devices", "2"}},
		"ErrTooFewDevices": {exitUsage, "fewer than 2", []string{"--dir", dir + "/g", "--server", w.address, "--credentials", wrong, "--devices", "2"}},
		"ErrTwice":         {exitUsage, "line 2: dev_01ARZ3NDEKTSV4RRFFQ69G5FAV is in line 1, too", []string{"--dir", dir + "/h", "--server", w.address, "--credentials", twice}},
		"ErrUnknownCode":   {exitClaimCode, "have a new one made", []string{"--dir", dir + "/i", "--server", w.address, "--claim-code", "22222222", "--gateway", w.gateway.URL}},
		"ErrNotAGateway":   {exitFailed, "404", []string{"--dir", dir + "/j", "--server", w.address, "--claim-code", "22222222", "--gateway", w.media.URL}},
		"ErrRefused":       {exitRefused, "the credentials are refused", []string{"--dir", dir + "/k", "--server", w.address, "--credentials", wrong}},
		"ErrDirIsAFile":    {exitFailed, "--dir", []string{"--dir", wrong}},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, c.args...)
			require.Equal(t, c.code, p.wait(t))
			require.Contains(t, p.output(), c.text)
		})
	}
}

// TestKilled kills a player at random moments, while servers come and go and the
// playlist changes: what was once written down is counted, and nothing twice.
func TestKilled(t *testing.T) {
	const kills, seed = 25, 7
	w := newWorld(t)
	stop := w.serve(t)
	id, code := w.create(t, "1")
	var items []device.Item
	for _, creative := range []string{"a", "b", "c", "d"} {
		items = append(items, w.item(creative, 25*time.Millisecond, true))
	}
	w.put(t, id, items[:2]...)
	dir := t.TempDir()
	claimed := start(t, "--dir", dir, "--server", w.address, "--gateway", w.gateway.URL, "--claim-code", code)
	claimed.waitFor(t, "played b")
	require.Zero(t, claimed.signal(t, os.Interrupt))
	recorded := claimed.played()

	random := mathrand.New(mathrand.NewPCG(seed, seed))
	var torn int
	for n := range kills {
		switch n {
		case kills / 4:
			stop()
		case kills / 2:
			w.put(t, id, items[2:]...)
			stop = w.serve(t)
		}
		p := start(t, "--dir", dir)
		select {
		case <-time.After(time.Duration(20+random.IntN(450)) * time.Millisecond):
		case <-p.ended:
			t.Fatalf("the player ended by itself: %s", p.output())
		}
		require.Equal(t, -1, p.signal(t, syscall.SIGKILL))
		if strings.Contains(p.output(), "no whole record") {
			torn++
		}
		for play, creative := range p.played() {
			recorded[play] = creative
		}
		for play, creative := range journal(t, dir, id) {
			recorded[play] = creative
		}
	}
	version := w.put(t, id, items[0], items[3])
	p := start(t, "--dir", dir)
	p.waitFor(t, "played d")
	var stored map[string]string
	lost := func() (missing []string) {
		stored = w.stored(t, id)
		for play, creative := range recorded {
			if stored[play] != creative {
				missing = append(missing, play)
			}
		}
		return missing
	}
	require.Eventually(t, func() bool { return len(lost()) == 0 }, patience, 50*time.Millisecond, "plays do not arrive")
	require.Zero(t, p.signal(t, os.Interrupt))
	require.Empty(t, lost())
	// One a life may have been handed in before it was killed, and not been printed.
	require.LessOrEqual(t, len(stored), len(recorded)+len(p.played())+kills)
	plays, _ := w.sums(t, id)
	require.EqualValues(t, len(stored), plays)
	require.Zero(t, w.rejected(t))
	require.Greater(t, len(recorded), kills)
	text, err := os.ReadFile(filepath.Join(dir, id, "playlist.json"))
	require.NoError(t, err)
	require.Contains(t, string(text), fmt.Sprintf(`"version":%d,`, version))
	t.Logf("%d plays in %d lives, %d of them began with a torn journal", len(recorded), kills+2, torn)
}

// journal are the plays that a killed player left unsent.
func journal(t *testing.T, dir, id string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	// Of a copy: to open it mends it.
	text, err := os.ReadFile(filepath.Join(dir, id, "plays"))
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "plays")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	j, _, err := player.OpenJournal(path, player.DefaultJournalLimit)
	require.NoError(t, err)
	defer j.Close()
	plays, _, err := j.Next(1<<20, 1<<30)
	require.NoError(t, err)
	for _, p := range plays {
		found[p.ID] = p.CreativeID
	}
	return found
}

// TestFleet plays 200 displays in one process, through the loss of their server.
func TestFleet(t *testing.T) {
	const devices = 200
	w := newWorld(t)
	stop := w.serve(t)
	dir := t.TempDir()
	var lines strings.Builder
	var ids []string
	for n := range devices {
		id, code := w.create(t, fmt.Sprint(n))
		c, err := w.Claim(t.Context(), code, "")
		require.NoError(t, err)
		fmt.Fprintf(&lines, "%s %s\n", c.DeviceID, c.Secret)
		w.put(t, id, w.item("same", time.Second, false))
		ids = append(ids, id)
	}
	file := filepath.Join(dir, "devices.txt")
	require.NoError(t, os.WriteFile(file, []byte(lines.String()), 0o600))
	p := start(t, "--dir", filepath.Join(dir, "state"), "--server", w.address, "--credentials", file, "--devices", fmt.Sprint(devices))
	online := func() bool { return w.online(t) == devices }
	require.Eventually(t, online, patience, 20*time.Millisecond, "not all connect")
	stop()
	require.Zero(t, w.online(t))
	w.serve(t)
	require.Eventually(t, online, patience, 20*time.Millisecond, "not all come back")
	require.Eventually(t, func() bool {
		var played int
		require.NoError(t, w.db.Pool().QueryRow(t.Context(), "SELECT count(DISTINCT device_id) FROM plays").Scan(&played))
		return played == devices
	}, patience, 50*time.Millisecond, "not all play: one may have lost its server before it had a playlist")
	require.Zero(t, p.signal(t, os.Interrupt))
	require.Regexp(t, `200 displays: .* 0 refused, 0 replaced`, p.output())
	// What a second was too short for is handed in by the next.
	left := make(map[string]map[string]string)
	for _, id := range ids {
		if plays := journal(t, filepath.Join(dir, "state"), id); len(plays) > 0 {
			left[id] = plays
		}
	}
	if len(left) > 0 {
		start(t, "--dir", filepath.Join(dir, "state"), "--credentials", file)
	}
	for id, plays := range left {
		require.Eventually(t, func() bool {
			stored := w.stored(t, id)
			for play := range plays {
				if stored[play] == "" {
					return false
				}
			}
			return true
		}, patience, 50*time.Millisecond, "%s does not hand in what it has", id)
	}
	total := 0
	for _, id := range ids {
		require.Eventually(t, func() bool {
			plays, _ := w.sums(t, id)
			found := len(w.stored(t, id))
			return found > 0 && plays == int64(found)
		}, patience, 50*time.Millisecond, "the plays of %s are not what is summed", id)
		total += len(w.stored(t, id))
	}
	require.Zero(t, w.rejected(t))
	entries, err := os.ReadDir(filepath.Join(dir, "state", "media"))
	require.NoError(t, err)
	require.Len(t, entries, 1, "the same content is kept once")
	t.Logf("%d plays of %d displays: %s", total, devices, p.output())
}

// TestHours: a display is off outside of its operating hours, also after a restart
// without a network, and hears at once when they change.
func TestHours(t *testing.T) {
	w := newWorld(t)
	stop := w.serve(t)
	id, code := w.create(t, "1")
	w.put(t, id, w.item("red", 200*time.Millisecond, false))
	hours := func(all ...airtime.Opening) {
		t.Helper()
		found, err := w.Find(t.Context(), organisation, id)
		require.NoError(t, err)
		found.Settings.Hours = all
		_, err = w.Update(t.Context(), organisation, id, found.Settings, 0)
		require.NoError(t, err)
	}
	// Tomorrow, in UTC: however late it is, that is after now and within 30 hours.
	midnight := time.Now().UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)
	tomorrow := airtime.Opening{Weekday: (int(midnight.Weekday())+6)%7 + 1, Open: 5, Close: 60}
	hours(tomorrow)
	off := "is off until " + midnight.Add(5*time.Minute).Local().Format("15:04")
	if time.Until(midnight.Add(5*time.Minute)) >= 20*time.Hour {
		off = "is off until " + midnight.Add(5*time.Minute).Local().Format("Mon 15:04")
	}

	dir := t.TempDir()
	p := start(t, "--dir", dir, "--server", w.address, "--gateway", w.gateway.URL, "--claim-code", code)
	p.waitFor(t, id+" "+off)
	began := time.Now()
	hours()
	p.waitFor(t, "shows red")
	t.Logf("it was on %s after its hours were changed", time.Since(began))
	require.Less(t, time.Since(began), 3*time.Second)
	p.waitFor(t, "played red")
	hours(tomorrow)
	require.Eventually(t, func() bool { return strings.Count(p.output(), off) == 2 }, patience, 10*time.Millisecond, "it is not off again")
	require.Zero(t, p.signal(t, os.Interrupt))

	stop()
	p = start(t, "--dir", dir)
	p.waitFor(t, id+" "+off)
	require.Zero(t, p.signal(t, os.Interrupt))
	require.NotContains(t, p.output(), "shows red")
}

// TestTLS: who signs the certificates of servers is kept, as the servers are.
func TestTLS(t *testing.T) {
	w := newWorld(t)
	web := httptest.NewTLSServer(nil) // has a certificate
	t.Cleanup(web.Close)
	w.encryption = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: web.TLS.Certificates}
	w.serve(t)
	_, code := w.create(t, "1")
	dir := filepath.Join(t.TempDir(), "state")
	authority := filepath.Join(t.TempDir(), "authority.pem")
	require.NoError(t, os.WriteFile(authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}), 0o600))

	server := "mqtts://" + w.address
	p := start(t, "--dir", dir, "--server", server, "--gateway", w.gateway.URL, "--claim-code", code)
	p.waitFor(t, "not connected to "+server+": its certificate is not trusted")
	require.Zero(t, p.signal(t, os.Interrupt))
	p = start(t, "--dir", dir, "--tls-ca", authority)
	p.waitFor(t, ": connected to "+server)
	require.Zero(t, p.signal(t, os.Interrupt))
	require.NoError(t, os.Remove(authority))
	p = start(t, "--dir", dir)
	p.waitFor(t, ": connected to "+server)
	require.Zero(t, p.signal(t, os.Interrupt))
}

// TestServerFile: players look up where servers are when they need one, and each of
// many says what it shows.
func TestServerFile(t *testing.T) {
	w := newWorld(t)
	stop := w.serve(t)
	dir := t.TempDir()
	servers, credentials := filepath.Join(dir, "servers"), filepath.Join(dir, "credentials")
	say := func(text string) {
		t.Helper()
		require.NoError(t, files.Replace(servers, []byte(text), 0o600))
	}
	var lines strings.Builder
	var ids []string
	for n := range 3 {
		id, code := w.create(t, fmt.Sprint(n))
		c, err := w.Claim(t.Context(), code, "")
		require.NoError(t, err)
		fmt.Fprintf(&lines, "%s %s\n", c.DeviceID, c.Secret)
		w.put(t, id, w.item("red", 100*time.Millisecond, false))
		ids = append(ids, id)
	}
	require.NoError(t, os.WriteFile(credentials, []byte(lines.String()), 0o600))
	say("\n \n")
	p := start(t, "--dir", filepath.Join(dir, "state"), "--server-file", servers, "--credentials", credentials, "--each")
	for _, id := range ids {
		p.waitFor(t, id+": not connected: no server is known")
	}
	require.Zero(t, w.online(t))
	say("127.0.0.1:1,\n" + w.address + "\n")
	for _, id := range ids {
		p.waitFor(t, id+": connected to "+w.address)
		p.waitFor(t, id+" played red")
	}

	// The server moves.
	before := w.address
	stop()
	w.address = "127.0.0.1:0"
	w.serve(t)
	require.NotEqual(t, before, w.address)
	say(w.address)
	for _, id := range ids {
		p.waitFor(t, id+": connected to "+w.address)
	}
	require.Zero(t, p.signal(t, os.Interrupt))
	require.Regexp(t, `3 displays: .* 0 refused, 0 replaced`, p.output())
}

// TestNoFight: of two players with the same credentials one has the connection, once
// each of them has been replaced.
func TestNoFight(t *testing.T) {
	w := newWorld(t)
	w.serve(t)
	id, code := w.create(t, "1")
	c, err := w.Claim(t.Context(), code, "")
	require.NoError(t, err)
	w.put(t, id, w.item("red", 100*time.Millisecond, false))
	dir := t.TempDir()
	file := filepath.Join(dir, "credentials")
	require.NoError(t, os.WriteFile(file, []byte(c.DeviceID+" "+c.Secret), 0o600))
	one := start(t, "--dir", filepath.Join(dir, "one"), "--server", w.address, "--credentials", file)
	one.waitFor(t, "connected to")
	two := start(t, "--dir", filepath.Join(dir, "two"), "--server", w.address, "--credentials", file)
	one.waitFor(t, "the device connected again")
	// It comes back, and so does the other: then it rests.
	two.waitFor(t, "the device connected again")
	rests := regexp.MustCompile(`another player has its credentials: [^;]*; the next attempt is in 1\dm`)
	require.Eventually(t, func() bool { return rests.MatchString(one.output()) }, patience, 10*time.Millisecond, "it does not rest")
	one.waitFor(t, "played red")
	two.waitFor(t, "played red")
	require.Equal(t, 1, strings.Count(two.output(), "not connected"), "the other is left alone")
	require.Zero(t, one.signal(t, os.Interrupt))
	require.Zero(t, two.signal(t, os.Interrupt))
}

// TestReplacedOnce: a display that alone has its credentials is back soon after a
// connection that nobody uses took its place, as one does that a server let in late.
func TestReplacedOnce(t *testing.T) {
	w := newWorld(t)
	w.serve(t)
	id, code := w.create(t, "1")
	c, err := w.Claim(t.Context(), code, "")
	require.NoError(t, err)
	w.put(t, id, w.item("red", 100*time.Millisecond, false))
	file := filepath.Join(t.TempDir(), "credentials")
	require.NoError(t, os.WriteFile(file, []byte(c.DeviceID+" "+c.Secret), 0o600))
	p := start(t, "--dir", filepath.Join(t.TempDir(), "state"), "--server", w.address, "--credentials", file)
	p.waitFor(t, "connected to "+w.address)
	late, err := net.Dial("tcp", w.address)
	require.NoError(t, err)
	defer late.Close()
	// MQTT 3.1.1: a clean session, a user name and a password.
	body := append([]byte("\x00\x04MQTT\x04\xc2\x00\x3c\x00\x00"), 0, byte(len(c.DeviceID)))
	body = append(append(body, c.DeviceID...), 0, byte(len(c.Secret)))
	body = append(body, c.Secret...)
	require.Less(t, len(body), 128)
	_, err = late.Write(append([]byte{0x10, byte(len(body))}, body...))
	require.NoError(t, err)
	began := time.Now()
	p.waitFor(t, "the device connected again")
	require.Eventually(t, func() bool { return strings.Count(p.output(), ": connected to "+w.address) == 2 }, patience, 10*time.Millisecond, "it does not come back")
	t.Logf("it was back %s after it was replaced", time.Since(began))
	require.Zero(t, p.signal(t, os.Interrupt))
}

// TestAnsweredLate has a way to the server that holds the first attempt to connect
// back until the player has given it up and is connected, and then lets it through,
// twice: each time the player is back soon.
func TestAnsweredLate(t *testing.T) {
	w := newWorld(t)
	w.serve(t)
	id, code := w.create(t, "1")
	c, err := w.Claim(t.Context(), code, "")
	require.NoError(t, err)
	w.put(t, id, w.item("red", 100*time.Millisecond, false))
	file := filepath.Join(t.TempDir(), "credentials")
	require.NoError(t, os.WriteFile(file, []byte(c.DeviceID+" "+c.Secret), 0o600))
	way, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	held := make(chan []byte, 1)
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { way.Close() })
	all.Go(func() {
		for first := true; ; first = false {
			from, err := way.Accept()
			if err != nil {
				return
			}
			if first {
				all.Go(func() {
					defer from.Close()
					attempt, _ := io.ReadAll(from) // until the player gives up
					held <- attempt
				})
				continue
			}
			to, err := net.Dial("tcp", w.address)
			if err != nil {
				from.Close()
				return
			}
			all.Go(func() {
				_, _ = io.Copy(to, from) // one of both closes it
				to.Close()
			})
			all.Go(func() {
				_, _ = io.Copy(from, to)
				from.Close()
			})
		}
	})
	p := start(t, "--dir", filepath.Join(t.TempDir(), "state"), "--server", way.Addr().String(), "--credentials", file)
	connected := func() int { return strings.Count(p.output(), ": connected to ") }
	var attempt []byte
	select {
	case attempt = <-held:
	case <-time.After(2 * patience):
		t.Fatal("the player does not give up")
	}
	require.Contains(t, string(attempt), id)
	require.Eventually(t, func() bool { return connected() == 1 }, patience, 10*time.Millisecond, "it does not try again")
	for n := range 2 {
		late, err := net.Dial("tcp", w.address)
		require.NoError(t, err)
		_, err = late.Write(attempt)
		require.NoError(t, err)
		began := time.Now()
		require.Eventually(t, func() bool { return connected() == n+2 }, patience, 10*time.Millisecond, "it does not come back")
		t.Logf("it was back %s after an old attempt came through", time.Since(began))
		require.NoError(t, late.Close())
	}
	require.NotContains(t, p.output(), "twice within")
	require.Zero(t, p.signal(t, os.Interrupt))
}
