package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/oklog/ulid/v2"

	"github.com/marquee-ads/marquee/bench/fleet"
)

const (
	// mostDisplays is how many are connected, where so many files can be open.
	mostDisplays = 5000
	// otherFiles is how many more a broker has open.
	otherFiles = 200
	// fewestDisplays are enough to measure anything.
	fewestDisplays = 500
	// connectsAtOnce are under way at any time.
	connectsAtOnce = 64
	// fanOutsEach is how often a change is sent in a round.
	fanOutsEach = 3
	// ordersWithin bounds what players are told, and devicesWithin all of it.
	ordersWithin  = time.Minute
	devicesWithin = 9 * time.Minute

	devicesName  = "devices" // to -only
	displayOwner = "displays"
	// playlistsAtOnce are set at a time.
	playlistsAtOnce = 16
)

// displays is what is measured of displays.
type displays struct {
	b      *bench
	rounds int
	count  int
	files  uint64 // that a process may have open

	owner        *door  // who owns the displays, at the gateway
	token        string // the owner's, good for five minutes
	organisation string
	group        string
	logins       []fleet.Login
	db           *pgx.Conn // the device service's
	postgres     *process
	proxy        *process
	service      *broker
	admin        string

	brokers       []*broker
	before, after goHeap // of the service, without displays and with all
	heap          []allocation
	playlists     time.Duration // until the last display had one of its own
	plays         []*playsAt
}

// wantsDevices says whether -only leaves what is measured of displays.
func (b *bench) wantsDevices() bool { return strings.Contains(devicesName, b.only) }

// measureDevices connects displays to the device service and to brokers that do
// nothing else, and has them hand in plays. It returns the section about it.
func (b *bench) measureDevices(ctx context.Context, rounds int) (string, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, devicesWithin, fmt.Errorf("the measurement of devices takes longer than %s", devicesWithin))
	defer cancel()
	d := &displays{b: b, rounds: rounds}
	for _, step := range []func(context.Context) error{d.open, d.startService, d.enrol, d.startBrokers, d.measureBrokers, d.measurePlays} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				err = errors.Join(context.Cause(ctx), err)
			}
			return "", err
		}
	}
	fmt.Fprintf(os.Stderr, "measured devices in %s\n", time.Since(began).Round(time.Second))
	return d.report(), nil
}

// open lets the programs open as many files as they may.
func (d *displays) open(context.Context) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read how many files can be open: %w", err)
	}
	// Programs that are started get what is set here; what Go itself raised they
	// would not.
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise how many files can be open: %w", err)
	}
	d.files, d.count = limit.Max, mostDisplays
	if limit.Max < mostDisplays+otherFiles {
		d.count = int(limit.Max) - otherFiles
	}
	if d.count < fewestDisplays {
		return fmt.Errorf("a process may have only %d files open: raise the limit (ulimit -Hn) to %d", limit.Max, mostDisplays+otherFiles)
	}
	return nil
}

// startService starts the device service in the mesh, with a Postgres as production
// has it behind the mesh proxy, and NATS.
func (d *displays) startService(ctx context.Context) error {
	fmt.Fprintln(os.Stderr, "starting Postgres, NATS and the device service")
	if _, err := d.b.accountService(ctx); err != nil {
		return err
	}
	postgres, socket, err := d.b.startPostgres(ctx, "device")
	if err != nil {
		return err
	}
	d.postgres = postgres
	d.proxy, err = d.b.startService("device mesh proxy", "meshproxyd", "--name=device-db", "--register=always", "--upstream=unix:"+filepath.Join(socket, ".s.PGSQL.5432"))
	if err != nil {
		return err
	}
	_, nats, _, err := d.b.startNATS(ctx, "nats", "")
	if err != nil {
		return err
	}
	ports, err := freeAddresses(2)
	if err != nil {
		return err
	}
	d.admin = ports[1]
	p, err := d.b.startService("device", "deviced", "--register=always", "--database-password-file="+d.b.passwordFile(), "--nats-address="+nats, "--mqtt-listen="+ports[0], "--admin-listen="+ports[1])
	if err != nil {
		return err
	}
	d.service = &broker{name: "device service", process: p, address: ports[0], qos: 1, checks: true, collect: d.collect, ready: d.reachable, change: d.command, forget: d.forgotten}
	// No faster than it can be recorded one by one: what happens then is not measured.
	d.service.leaveEvery = 2 * time.Millisecond
	d.service.text = func(number int) string { return fmt.Sprintf(`"duration_ms":%d}`, 1000*number) }
	if err := until(ctx, "the device service is ready", func(ctx context.Context) error {
		_, err := fetch(ctx, "http://"+d.admin+"/readyz")
		return err
	}); err != nil {
		said, _ := os.ReadFile(p.log) // none is no other failure
		return fmt.Errorf("%w; it said\n%s", err, said)
	}
	database := url.URL{Scheme: "postgres", Path: "/device", RawQuery: url.Values{"host": {socket}, "user": {"device"}}.Encode()}
	config, err := pgx.ParseConfig(database.String())
	if err != nil {
		return fmt.Errorf("connect to the displays' database: %w", err)
	}
	config.Password = password
	if d.db, err = pgx.ConnectConfig(ctx, config); err != nil {
		return fmt.Errorf("connect to the displays' database: %w", err)
	}
	d.b.closers = append(d.b.closers, func() {
		closing, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		d.db.Close(closing)
	})
	return nil
}

// enrol makes an owner and all displays: these in the tables, as they are when each
// has been made and claimed, because that would take longer than all that is
// measured.
func (d *displays) enrol(ctx context.Context) error {
	d.owner = d.b.newDoor("owner", d.b.gatewayHTTP, &atomic.Int64{})
	if err := until(ctx, "an account can be made", func(ctx context.Context) error { return d.owner.signUp(ctx, displayOwner) }); err != nil {
		return err
	}
	if err := d.logIn(ctx); err != nil {
		return err
	}
	var organisation struct {
		Organisation struct{ OrganisationID string }
	}
	if err := d.call(ctx, http.MethodPost, "/v1/organisations", map[string]string{"requestId": "organisation", "name": "Displays", "kind": "ORGANISATION_KIND_DISPLAY_OWNER"}, &organisation); err != nil {
		return fmt.Errorf("make an organisation: %w", err)
	}
	d.organisation = organisation.Organisation.OrganisationID
	if err := d.logIn(ctx); err != nil {
		return err
	}
	if err := d.insert(ctx); err != nil {
		return err
	}
	var group struct{ Group struct{ GroupID string } }
	if err := until(ctx, "the gateway knows the device service", func(ctx context.Context) error {
		return d.call(ctx, http.MethodPost, d.path("/groups"), map[string]string{"requestId": "group-of-all", "name": "All"}, &group)
	}); err != nil {
		return err
	}
	d.group = group.Group.GroupID
	const atOnce = 500
	for begin := 0; begin < d.count; begin += atOnce {
		var ids []string
		for _, l := range d.logins[begin:min(begin+atOnce, d.count)] {
			ids = append(ids, l.User)
		}
		if err := d.call(ctx, http.MethodPost, d.path("/groups/"+d.group+"/devices:add"), map[string][]string{"deviceIds": ids}, &struct{}{}); err != nil {
			return fmt.Errorf("fill the group: %w", err)
		}
	}
	var err error
	d.service.fleet, err = d.b.startFleet("players-of-deviced", d.logins)
	return err
}

// insert stores the displays, each with one creative that it may play.
func (d *displays) insert(ctx context.Context) error {
	now := time.Now()
	hashes := make([][]byte, d.count)
	for i := range hashes {
		id, err := ulid.New(ulid.Timestamp(now), rand.Reader)
		if err != nil {
			return fmt.Errorf("make an id: %w", err)
		}
		raw := make([]byte, 32)
		if _, err := rand.Read(raw); err != nil {
			return fmt.Errorf("make a secret: %w", err)
		}
		secret := "mqd_" + base64.RawURLEncoding.EncodeToString(raw)
		hash := sha256.Sum256([]byte(secret))
		hashes[i] = hash[:]
		d.logins = append(d.logins, fleet.Login{User: "dev_" + id.String(), Password: secret, Filter: "d/dev_" + id.String() + "/down/#"})
	}
	columns := []string{
		"device_id", "organisation_id", "name", "latitude", "longitude", "address", "venue_type", "width_px", "height_px", "loop_seconds", "slot_seconds",
		"price_minor", "currency", "time_zone", "hours", "revision", "create_time", "update_time", "claim_time", "secret_hash",
	}
	slot := int32(fleet.PlayLength / time.Second)
	if _, err := d.db.CopyFrom(ctx, pgx.Identifier{"devices"}, columns, pgx.CopyFromSlice(d.count, func(i int) ([]any, error) {
		return []any{
			d.logins[i].User, d.organisation, fmt.Sprint("Display ", i), 48.35, 11.79, "", "transit.airports.gates", int32(1080), int32(1920), 6 * slot, slot,
			int64(250), "EUR", "Europe/Berlin", "[]", int64(1), now, now, now, hashes[i],
		}, nil
	})); err != nil {
		return fmt.Errorf("store displays: %w", err)
	}
	if _, err := d.db.CopyFrom(ctx, pgx.Identifier{"device_creatives"}, []string{"device_id", "creative_id", "duration_ms"}, pgx.CopyFromSlice(d.count, func(i int) ([]any, error) {
		return []any{d.logins[i].User, fleet.Creative, int32(fleet.PlayLength.Milliseconds())}, nil
	})); err != nil {
		return fmt.Errorf("store what displays may play: %w", err)
	}
	if _, err := d.db.Exec(ctx, "ANALYZE"); err != nil {
		return fmt.Errorf("analyse the tables: %w", err)
	}
	return nil
}

func (d *displays) path(rest string) string {
	return "/v1/organisations/" + d.organisation + rest
}

// logIn gives the owner another token, which says what roles it has now.
func (d *displays) logIn(ctx context.Context) (err error) {
	if d.token, err = d.owner.logIn(ctx, displayOwner); err != nil {
		return fmt.Errorf("log the owner in: %w", err)
	}
	return nil
}

func (d *displays) call(ctx context.Context, method, path string, request, answer any) error {
	return d.owner.call(ctx, method, path, d.token, request, answer)
}

func (d *displays) startBrokers(ctx context.Context) error {
	d.brokers = []*broker{d.service}
	for _, add := range []func(context.Context, []fleet.Login) (*broker, error){d.b.mosquitto, d.b.nats} {
		other, err := add(ctx, d.logins)
		if err != nil {
			return err
		}
		if other != nil {
			d.brokers = append(d.brokers, other)
		}
	}
	return nil
}

// collect has the device service free what it does not use, and keeps its profile.
func (d *displays) collect(ctx context.Context, label string) error {
	heap, err := heapOf(ctx, d.admin, filepath.Join(d.b.dir, "heap-"+label))
	if err != nil {
		return fmt.Errorf("read the memory of the device service: %w", err)
	}
	if label == withoutDisplays {
		d.before = heap
	} else {
		d.after = heap
	}
	return nil
}

// reachable waits until the gateway reaches the device service: while very many come
// its instance may not look well, and nobody is to be told anything then.
func (d *displays) reachable(ctx context.Context) error {
	return until(ctx, "the device service is reached again", func(ctx context.Context) error {
		return d.call(ctx, http.MethodGet, d.path("/groups/"+d.group), nil, &struct{}{})
	})
}

// command sends a command to the group of all displays: one call.
func (d *displays) command(ctx context.Context, number int) error {
	return d.call(ctx, http.MethodPost, d.path("/groups/"+d.group+"/commands"), map[string]any{
		"requestId": fmt.Sprintf("command-%d", number), "kind": "COMMAND_KIND_IDENTIFY", "durationSeconds": number,
	}, &struct{}{})
}

// forgotten waits until nobody is connected any more, and takes away the commands,
// which nobody has answered: they would be sent again.
func (d *displays) forgotten(ctx context.Context) error {
	if err := until(ctx, "the device service has recorded who left", func(ctx context.Context) error {
		var left int
		err := d.db.QueryRow(ctx, "SELECT count(*) FROM presence WHERE disconnect_time IS NULL").Scan(&left)
		if err == nil && left > 0 {
			err = fmt.Errorf("%d are connected", left)
		}
		return err
	}); err != nil {
		return err
	}
	if _, err := d.db.Exec(ctx, "DELETE FROM device_commands"); err != nil {
		return fmt.Errorf("take the commands away: %w", err)
	}
	return nil
}

const (
	withoutDisplays = "without"
	withDisplays    = "with"
)

func (d *displays) measureBrokers(ctx context.Context) error {
	for _, m := range d.brokers {
		var err error
		if m.before, err = m.memory(ctx, withoutDisplays); err != nil {
			return fmt.Errorf("%s, without displays: %w", m.name, err)
		}
	}
	for round := range d.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d", round+1, d.rounds)
		for _, m := range d.brokers {
			if err := d.measureBroker(ctx, m, round); err != nil {
				return fmt.Errorf("%s, %d displays: %w\nit said at last\n%s", m.name, d.count, err, m.process.lastWords())
			}
			fmt.Fprintf(os.Stderr, "  %s %s for all to connect, %s for a change", m.name, m.connects[round].Took().Round(time.Millisecond), m.fanOuts[len(m.fanOuts)-1].Round(time.Millisecond))
		}
		fmt.Fprintln(os.Stderr)
	}
	var err error
	d.heap, err = allocations(ctx, filepath.Join(d.b.dir, "heap-"+withoutDisplays), filepath.Join(d.b.dir, "heap-"+withDisplays), 12)
	return err
}

// memory is that of the broker when it has done all that it had to do.
func (m *broker) memory(ctx context.Context, label string) (int64, error) {
	if m.collect != nil {
		if err := m.collect(ctx, label); err != nil {
			return 0, err
		}
	}
	return settled(ctx, m.process.pid)
}

func (d *displays) measureBroker(ctx context.Context, m *broker, round int) error {
	do := func(o fleet.Order) (fleet.Report, error) {
		o.AtOnce, o.Within = connectsAtOnce, ordersWithin
		return m.fleet.do(ctx, o)
	}
	if err := d.logIn(ctx); err != nil { // not while it is measured
		return err
	}
	connected, err := do(fleet.Order{Do: fleet.Connect, Address: m.address, Clients: d.count})
	if err != nil {
		return err
	}
	m.connects = append(m.connects, connected)
	if _, err := do(fleet.Order{Do: fleet.Subscribe, QoS: m.qos}); err != nil {
		return err
	}
	if round == 0 {
		if m.after, err = m.memory(ctx, withDisplays); err != nil {
			return err
		}
	}
	if m.ready != nil {
		if err := m.ready(ctx); err != nil {
			return err
		}
	}
	for i := range fanOutsEach {
		number := 1 + round*fanOutsEach + i
		if _, err := do(fleet.Order{Do: fleet.Expect, Text: m.text(number)}); err != nil {
			return err
		}
		began := time.Now()
		if err := m.change(ctx, number); err != nil {
			return fmt.Errorf("send a change: %w", err)
		}
		all, err := do(fleet.Order{Do: fleet.Await})
		if err != nil {
			return err
		}
		m.fanOuts = append(m.fanOuts, all.Ended.Sub(began))
	}
	if m == d.service && round == d.rounds-1 {
		if err := d.measurePlaylists(ctx, do); err != nil {
			return fmt.Errorf("set playlists: %w", err)
		}
	}
	if _, err := do(fleet.Order{Do: fleet.Disconnect, Every: m.leaveEvery}); err != nil {
		return err
	}
	if m.forget != nil {
		return m.forget(ctx)
	}
	return nil
}

// measurePlaylists sets a playlist for each display, which has none: a call each.
func (d *displays) measurePlaylists(ctx context.Context, do func(fleet.Order) (fleet.Report, error)) error {
	if _, err := do(fleet.Order{Do: fleet.Expect, Text: fmt.Sprintf(`"creative_id":%q`, fleet.Creative)}); err != nil {
		return err
	}
	playlist := map[string]any{"items": []any{map[string]any{
		"creativeId": fleet.Creative, "url": "https://media.example.com/bench.png", "sha256": strings.Repeat("0123456789abcdef", 4),
		"mediaType": "image/png", "durationMs": fleet.PlayLength.Milliseconds(),
	}}}
	var (
		all    sync.WaitGroup
		next   atomic.Int64
		failed atomic.Pointer[error]
		began  = time.Now()
	)
	for range playlistsAtOnce {
		all.Go(func() {
			for failed.Load() == nil {
				i := int(next.Add(1)) - 1
				if i >= d.count {
					return
				}
				if err := d.call(ctx, http.MethodPut, d.path("/devices/"+d.logins[i].User+"/playlist"), playlist, &struct{}{}); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	got, err := do(fleet.Order{Do: fleet.Await})
	d.playlists = got.Ended.Sub(began)
	return err
}
