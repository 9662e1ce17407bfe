package device

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/marquee-ads/marquee/platform/fault"
)

// Channels are what players and the service tell each other, each way.
const (
	// ChannelPlaylist carries a device's playlist down.
	ChannelPlaylist = "playlist"
	// ChannelPlays carries batches of plays up, and what became of them down.
	ChannelPlays = "plays"
	// ChannelCommands carries commands down, and replies to them up.
	ChannelCommands = "commands"
)

// Session is one connection of a player that has been let in. Its methods may be
// called at any time, also after its end.
type Session interface {
	// ID is unique among all connections of all instances.
	ID() string
	DeviceID() string
	// Send hands a message to the player at least once while it stays connected, if
	// it listens to the channel. It does not wait for the player.
	Send(channel string, payload []byte) error
	// End closes the connection soon, without waiting for it.
	End(reason EndReason)
}

// EndReason is why the service ends a connection.
type EndReason string

// Why connections are ended.
const (
	EndTakenOver EndReason = "the device connected again"
	EndRevoked   EndReason = "the credentials are not good any more"
	EndBusy      EndReason = "the service cannot take what was sent at the moment"
	EndShutdown  EndReason = "the instance stops"
)

// Connection is a session as it is stored.
type Connection struct {
	DeviceID string
	ID       string
	Time     time.Time
}

// ChangeKind is what a change that instances tell each other is about.
type ChangeKind string

// What instances tell each other.
const (
	CredentialsChanged ChangeKind = "credentials"
	PlaylistChanged    ChangeKind = "playlist"
	Connected          ChangeKind = "connected"
	Disconnected       ChangeKind = "disconnected"
	SettingsChanged    ChangeKind = "settings" // or made
	PlaysStored        ChangeKind = "plays"    // told while somebody watches
	CommandSent        ChangeKind = "commands"
	GroupCommandSent   ChangeKind = "group-commands"
)

// Change is one thing that changed about a device.
type Change struct {
	Kind     ChangeKind
	DeviceID string
	// ConnectionID is that of Connected.
	ConnectionID string
	// Plays are those of PlaysStored, all of devices of OrganisationID.
	Plays          []Play
	OrganisationID string
	// GroupCommandID is that of GroupCommandSent, which names no device.
	GroupCommandID string
}

// PlaneStore is what the device plane keeps. Its errors are as Store's.
type PlaneStore interface {
	WatchStore
	CommandQueue

	// Secrets are the hashes of the credentials of those of the devices that can
	// connect.
	Secrets(ctx context.Context, deviceIDs []string) (map[string][]byte, error)
	// Programmes are those of the devices that have a playlist, with what is booked in
	// the time that a schedule made now is about, Editions which they are. The bookings
	// are not older than the edition.
	Programmes(ctx context.Context, deviceIDs []string, now time.Time) (map[string]Programme, error)
	Editions(ctx context.Context, deviceIDs []string) (map[string]Edition, error)

	// SeeInstance says that the instance runs: its connections are believed for
	// five seconds.
	SeeInstance(ctx context.Context, instanceID string) error
	// ForgetInstance says that it has none any more.
	ForgetInstance(ctx context.Context, instanceID string, now time.Time) error
	// Connect makes these the connections of their devices and tells all instances.
	Connect(ctx context.Context, instanceID string, connections []Connection) error
	// Disconnect ends a connection, unless the device has another since. It tells
	// nobody.
	Disconnect(ctx context.Context, c Connection, now time.Time) error
	// TellDisconnected tells all instances that connections of these devices ended.
	TellDisconnected(ctx context.Context, deviceIDs []string) error
	// DisconnectOthers ends those of the instance's connections from before a time
	// that are not among these, and tells all instances.
	DisconnectOthers(ctx context.Context, instanceID string, ids []string, before, now time.Time) error
	// Connections are the ids of the last connections of devices.
	Connections(ctx context.Context, deviceIDs []string) (map[string]string, error)

	// StorePlays stores in one transaction what can have been, sums it, and sets
	// the rest aside.
	StorePlays(ctx context.Context, plays []Play, rejected []RejectedPlay, now time.Time) (Stored, error)
	// AddPlayPartitions makes room for the plays of these days.
	AddPlayPartitions(ctx context.Context, now time.Time) error

	// Changes calls changed for each change of any device, in order, after listening
	// was called once. It returns when ctx ends or changes may have been missed.
	Changes(ctx context.Context, listening func(), changed func(Change)) error
}

// PlayKey names a play.
type PlayKey struct{ DeviceID, PlayID string }

// Stored is what became of plays: those that are in neither were there before.
type Stored struct {
	Added    map[PlayKey]bool
	Rejected map[PlayKey]Rejection
}

// ErrCredentials is what a player with wrong credentials is refused with.
var ErrCredentials = fault.New(fault.Unauthenticated, "CREDENTIALS_INVALID", "the device has no such credentials")

// Plane is what the service does for players: who is let in, who is connected,
// what they get and what they hand in. An instance has one.
type Plane struct {
	store      PlaneStore
	instanceID string
	now        func() time.Time
	log        hclog.Logger
	ingest     *ingester
	watches    *Watches
	metrics    *planeMetrics

	mu          sync.Mutex
	connections map[string]*connection // by device
	// revisions counts the changes of credentials that were heard of: whoever was
	// let in before the last may have been let in with what is not good any more.
	revisions uint64
	// unsure means that the store may believe something else than is so.
	unsure bool
	// gone are devices whose connection ended, and others are not told yet.
	gone []string
	// left has room for one: there are some.
	left chan struct{}
}

// connection is a session with what the plane knows of it.
type connection struct {
	session    Session
	secretHash []byte
	since      time.Time
	recorded   bool // guarded by Plane.mu

	playlist struct {
		sync.Mutex
		listens bool
		sent    Edition
		// stale is when its schedule is to be followed by a later one.
		stale time.Time
	}

	commands struct {
		sync.Mutex
		listens bool
		// sent are those that are not answered, and when they expire.
		sent map[string]time.Time
	}
}

// NewPlane makes one, which Run keeps going. instanceID names the process among
// those of the service.
func NewPlane(store PlaneStore, instanceID string, now func() time.Time, log hclog.Logger) *Plane {
	p := &Plane{store: store, instanceID: instanceID, now: now, log: log, connections: make(map[string]*connection), left: make(chan struct{}, 1)}
	p.metrics = newPlaneMetrics(p.players)
	p.ingest = newIngester(store, now, log, p.metrics)
	p.watches = newWatches(store, log)
	return p
}

// Watches are those of this instance.
func (p *Plane) Watches() *Watches { return p.watches }

// Metrics are device_plays_total{outcome}, device_plays_rejected_total{reason},
// device_batches_waiting, device_commands_total{outcome}, device_players_connected
// and device_watches_open.
func (p *Plane) Metrics() []prometheus.Collector {
	return append(slices.Clone(p.metrics.all), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "device_watches_open", Help: "Callers that watch devices at this instance.",
	}, func() float64 { return float64(p.watches.callers()) }))
}

// players is how many are connected to this instance.
func (p *Plane) players() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.connections)
}

func (p *Plane) moment() time.Time { return p.now().UTC().Truncate(time.Microsecond) }

// Pass is a player's permission to connect.
type Pass struct {
	deviceID   string
	secretHash []byte
	revisions  uint64
}

// Admit says whether a player with these credentials may connect. Errors:
// ErrCredentials.
func (p *Plane) Admit(ctx context.Context, deviceID, secret string) (Pass, error) {
	// What cannot be right is not worth asking the database for.
	if !idPattern.MatchString(deviceID) || len(secret) != secretLength {
		return Pass{}, ErrCredentials
	}
	p.mu.Lock()
	pass := Pass{deviceID: deviceID, secretHash: hash(secret), revisions: p.revisions}
	p.mu.Unlock()
	good, err := p.good(ctx, pass)
	if err != nil {
		return Pass{}, err
	}
	if !good {
		return Pass{}, ErrCredentials
	}
	return pass, nil
}

func (p *Plane) good(ctx context.Context, pass Pass) (bool, error) {
	secrets, err := p.store.Secrets(ctx, []string{pass.deviceID})
	if err != nil {
		return false, fmt.Errorf("reading the credentials of %s: %w", pass.deviceID, err)
	}
	stored, ok := secrets[pass.deviceID]
	return ok && hmac.Equal(stored, pass.secretHash), nil
}

// Connected takes a session into the plane: an earlier one of the device is ended,
// wherever it is.
func (p *Plane) Connected(ctx context.Context, pass Pass, session Session) {
	c := &connection{session: session, secretHash: pass.secretHash, since: p.moment()}
	p.mu.Lock()
	before := p.connections[session.DeviceID()]
	p.connections[session.DeviceID()] = c
	changed := p.revisions != pass.revisions
	p.mu.Unlock()
	if before != nil {
		before.session.End(EndTakenOver)
	}
	if changed {
		if good, err := p.good(ctx, pass); err != nil || !good {
			session.End(EndRevoked)
			return
		}
	}
	err := p.store.Connect(ctx, p.instanceID, []Connection{c.stored()})
	p.mu.Lock()
	defer p.mu.Unlock()
	c.recorded = err == nil
	if err != nil {
		p.unsure = true
		p.log.Warn("a connection is not recorded yet", "device", session.DeviceID(), "error", err)
	}
}

func (c *connection) stored() Connection {
	return Connection{DeviceID: c.session.DeviceID(), ID: c.session.ID(), Time: c.since}
}

// Disconnected takes a session that has ended out of the plane.
func (p *Plane) Disconnected(ctx context.Context, session Session) {
	p.mu.Lock()
	c := p.connections[session.DeviceID()]
	if c != nil && c.session.ID() == session.ID() {
		delete(p.connections, session.DeviceID())
	}
	p.mu.Unlock()
	gone := Connection{DeviceID: session.DeviceID(), ID: session.ID()}
	if err := p.store.Disconnect(ctx, gone, p.moment()); err != nil {
		p.mu.Lock()
		p.unsure = true
		p.mu.Unlock()
		p.log.Warn("the end of a connection is not recorded yet", "device", session.DeviceID(), "error", err)
	}
	// Also after an error: it may have been recorded.
	p.mu.Lock()
	p.gone = append(p.gone, session.DeviceID())
	p.mu.Unlock()
	signal(p.left)
}

// tellGone tells other instances whose connections ended, those of a moment
// together: a commit that tells something waits for all others that do.
func (p *Plane) tellGone(ctx context.Context) {
	for {
		select {
		case <-p.left:
		case <-ctx.Done():
			return
		}
		for wait := goneTogether; pause(ctx, wait); wait = seenEvery {
			if p.tellGoneNow(ctx) {
				break
			}
		}
	}
}

// tellGoneNow says whether it did.
func (p *Plane) tellGoneNow(ctx context.Context) bool {
	p.mu.Lock()
	gone := p.gone
	p.gone = nil
	p.mu.Unlock()
	if len(gone) == 0 {
		return true
	}
	err := p.store.TellDisconnected(ctx, gone)
	if err == nil {
		return true
	}
	p.log.Warn("other instances do not learn yet whose connections ended", "error", err)
	p.mu.Lock()
	p.gone = append(p.gone, gone...)
	p.mu.Unlock()
	return false
}

// connectionOf is the connection of a session, nil when it has ended.
func (p *Plane) connectionOf(deviceID, sessionID string) *connection {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.connections[deviceID]; c != nil && (sessionID == "" || c.session.ID() == sessionID) {
		return c
	}
	return nil
}

// Listens is told when a player begins to listen to a channel: it gets the
// newest playlist, and the commands that it has not answered, at once.
func (p *Plane) Listens(ctx context.Context, session Session, channel string) {
	c := p.connectionOf(session.DeviceID(), session.ID())
	switch {
	case c == nil:
	case channel == ChannelPlaylist:
		c.playlist.Lock()
		c.playlist.listens, c.playlist.sent = true, Edition{}
		c.playlist.Unlock()
		p.sendPlaylist(ctx, c)
	case channel == ChannelCommands:
		p.sendOpenCommands(ctx, c)
	}
}

// sendPlaylist sends the newest playlist if the player listens and does not have
// it. A player that cannot be told now is ended: it asks again when it is back.
func (p *Plane) sendPlaylist(ctx context.Context, c *connection) {
	id := c.session.DeviceID()
	found, err := p.store.Programmes(ctx, []string{id}, p.now())
	if err != nil {
		p.log.Warn("a playlist could not be read", "device", id, "error", err)
		c.session.End(EndBusy)
		return
	}
	if newest, ok := found[id]; ok {
		p.sendProgramme(c, newest)
	}
}

// sendProgramme sends one that was read, unless the player has it, or a later one.
func (p *Plane) sendProgramme(c *connection, newest Programme) {
	if err := p.sendEdition(c, newest); err != nil {
		p.log.Warn("a playlist could not be sent", "device", newest.DeviceID, "error", err)
		c.session.End(EndBusy)
	}
}

func (p *Plane) sendEdition(c *connection, newest Programme) error {
	now := p.now()
	c.playlist.Lock()
	defer c.playlist.Unlock()
	has := newest.Edition == c.playlist.sent && now.Before(c.playlist.stale)
	if !c.playlist.listens || has || newest.Edition.before(c.playlist.sent) {
		return nil
	}
	d, err := newest.document(now)
	if err != nil {
		return err
	}
	if d.omitted > 0 {
		p.log.Warn("a playlist has no room for all that is booked", "device", newest.DeviceID, "slots_left_out", d.omitted)
	}
	if err := c.session.Send(ChannelPlaylist, d.text); err != nil {
		return fmt.Errorf("sending it: %w", err)
	}
	c.playlist.sent = newest.Edition
	// Players that came together are not told together. One that has little is told
	// before half of it is over.
	c.playlist.stale = now.Add(min(scheduleEvery+rand.N(scheduleEvery), d.until.Sub(now)/2))
	return nil
}

// extend sends each player a later schedule long before the end of the one that it
// has. What is not in memory is read for many players at once.
func (p *Plane) extend(ctx context.Context) {
	for pause(ctx, extendEvery) {
		for some := range slices.Chunk(p.stale(), programmesAtOnce) {
			if err := p.extendSome(ctx, some); err != nil && ctx.Err() == nil {
				p.log.Warn("players have their schedules for some hours less", "error", err)
				break
			}
		}
	}
}

// stale are the connections whose schedule is due.
func (p *Plane) stale() []*connection {
	now := p.now()
	p.mu.Lock()
	due := slices.Collect(maps.Values(p.connections))
	p.mu.Unlock()
	return slices.DeleteFunc(due, func(c *connection) bool {
		c.playlist.Lock()
		defer c.playlist.Unlock()
		return c.playlist.sent == Edition{} || now.Before(c.playlist.stale)
	})
}

func (p *Plane) extendSome(ctx context.Context, some []*connection) error {
	ids := make([]string, len(some))
	for i, c := range some {
		ids[i] = c.session.DeviceID()
	}
	found, err := p.store.Programmes(ctx, ids, p.now())
	if err != nil {
		return fmt.Errorf("reading playlists: %w", err)
	}
	for _, c := range some {
		if newest, ok := found[c.session.DeviceID()]; ok {
			p.sendProgramme(c, newest)
		}
	}
	return nil
}

// Received takes what a player sent. It returns when that is stored, so that it
// may be acknowledged; after an error it must not be.
func (p *Plane) Received(ctx context.Context, session Session, channel string, payload []byte) error {
	if channel == ChannelCommands {
		return p.replied(ctx, session, payload)
	}
	if channel != ChannelPlays {
		return nil
	}
	receipt, err := p.ingest.store(ctx, ParseBatch(session.DeviceID(), payload))
	if err != nil {
		return fmt.Errorf("storing plays of %s: %w", session.DeviceID(), err)
	}
	text, err := json.Marshal(receipt)
	if err != nil {
		return fmt.Errorf("writing a receipt: %w", err)
	}
	// The plays are stored whether or not the player learns more than that.
	if err := session.Send(ChannelPlays, text); err != nil {
		p.log.Debug("a receipt could not be sent", "device", session.DeviceID(), "error", err)
	}
	return nil
}

// How often the plane does what it does by the clock.
const (
	seenEvery      = time.Second
	partitionEvery = time.Hour
	listenAgain    = 200 * time.Millisecond
	pushesAtOnce   = 8
	goneTogether   = 20 * time.Millisecond
	// scheduleEvery is after how long at the earliest a player gets a later schedule.
	// It waits for twice as long at most, of the 30 hours that it has.
	scheduleEvery    = time.Hour
	extendEvery      = 2 * time.Second
	programmesAtOnce = 200
)

// Run keeps the plane going until ctx ends, and then says goodbye to the store.
func (p *Plane) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, run := range []func(context.Context){p.ingest.run, p.listen, p.tick, p.watches.run, p.tellGone, p.extend} {
		all.Go(func() { run(ctx) })
	}
	all.Wait()
	leave, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	p.tellGoneNow(leave)
	if err := p.store.ForgetInstance(leave, p.instanceID, p.moment()); err != nil {
		p.log.Warn("the store still believes this instance; it will for five seconds", "error", err)
	}
	return ctx.Err()
}

// tick says that the instance runs, and puts right what the store may have wrong.
func (p *Plane) tick(ctx context.Context) {
	seen, partitions := time.NewTicker(seenEvery), time.NewTicker(partitionEvery)
	defer seen.Stop()
	defer partitions.Stop()
	for {
		if err := p.store.SeeInstance(ctx, p.instanceID); err != nil && ctx.Err() == nil {
			p.log.Warn("the store does not see this instance", "error", err)
		} else if err == nil && p.takeUnsure() {
			p.reconcile(ctx)
		}
		select {
		case <-seen.C:
		case <-partitions.C:
			if err := p.store.AddPlayPartitions(ctx, p.now()); err != nil && ctx.Err() == nil {
				p.log.Warn("making room for plays", "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (p *Plane) takeUnsure() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	unsure := p.unsure
	p.unsure = false
	return unsure
}

// listen follows the changes. Each time it begins to, it looks at everything once:
// what happened before it listened is not told.
func (p *Plane) listen(ctx context.Context) {
	pushes := make(chan struct{}, pushesAtOnce)
	var all sync.WaitGroup
	defer all.Wait()
	changed := func(c Change) {
		p.changed(ctx, c, func(push func()) {
			pushes <- struct{}{}
			all.Go(func() {
				defer func() { <-pushes }()
				push()
			})
		})
	}
	for {
		err := p.store.Changes(ctx, func() {
			p.watches.listens()
			p.reconcile(ctx)
		}, changed)
		p.watches.deaf()
		if ctx.Err() != nil {
			return
		}
		p.log.Warn("changes may have been missed; listening again", "error", err)
		timer := time.NewTimer(listenAgain)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// changed does what a change asks of this instance; what waits for the database
// goes on in parallel.
func (p *Plane) changed(ctx context.Context, change Change, parallel func(func())) {
	p.watches.heard(change)
	if change.Kind == CredentialsChanged {
		p.mu.Lock()
		p.revisions++
		p.mu.Unlock()
	}
	if change.Kind == GroupCommandSent {
		parallel(func() { p.commandsChanged(ctx, change) })
		return
	}
	c := p.connectionOf(change.DeviceID, "")
	if c == nil {
		return
	}
	switch change.Kind {
	case Connected:
		if change.ConnectionID != c.session.ID() {
			p.overtaken(ctx, c, parallel)
		}
	case CredentialsChanged:
		parallel(func() {
			good, err := p.good(ctx, Pass{deviceID: change.DeviceID, secretHash: c.secretHash})
			switch {
			case err != nil: // it shows its credentials again when it is back
				p.log.Warn("whether changed credentials are still good cannot be told; the connection is ended", "device", change.DeviceID, "error", err)
				c.session.End(EndBusy)
			case !good:
				c.session.End(EndRevoked)
			}
		})
	case PlaylistChanged, SettingsChanged:
		parallel(func() { p.sendPlaylist(ctx, c) })
	case CommandSent:
		parallel(func() { p.commandsChanged(ctx, change) })
	}
}

// overtaken ends a connection unless it is the device's last after all: word of
// an earlier one may come late.
func (p *Plane) overtaken(ctx context.Context, c *connection, parallel func(func())) {
	p.mu.Lock()
	recorded := c.recorded
	p.mu.Unlock()
	if !recorded {
		return
	}
	parallel(func() {
		last, err := p.store.Connections(ctx, []string{c.session.DeviceID()})
		switch {
		case err != nil: // the next comparison with the store tells
			p.log.Warn("whether a device has connected again cannot be told", "device", c.session.DeviceID(), "error", err)
			p.mu.Lock()
			p.unsure = true
			p.mu.Unlock()
		case last[c.session.DeviceID()] != c.session.ID():
			c.session.End(EndTakenOver)
		}
	})
}

// reconcile makes the store believe what is so, and ends and sends what changes
// that were missed would have.
func (p *Plane) reconcile(ctx context.Context) {
	if err := p.reconciled(ctx); err != nil && ctx.Err() == nil {
		p.log.Warn("comparing the connections with the store", "error", err)
		p.mu.Lock()
		p.unsure = true
		p.mu.Unlock()
	}
}

func (p *Plane) reconciled(ctx context.Context) error {
	before := p.moment()
	p.mu.Lock()
	present := make([]*connection, 0, len(p.connections))
	ids, sessions := make([]string, 0, len(p.connections)), make([]string, 0, len(p.connections))
	var unrecorded []Connection
	for id, c := range p.connections {
		present, ids, sessions = append(present, c), append(ids, id), append(sessions, c.session.ID())
		if !c.recorded && c.since.Before(before) {
			unrecorded = append(unrecorded, c.stored())
			c.recorded = true
		}
	}
	p.mu.Unlock()
	err := p.store.DisconnectOthers(ctx, p.instanceID, sessions, before, before)
	if len(unrecorded) > 0 {
		err = errors.Join(err, p.store.Connect(ctx, p.instanceID, unrecorded))
	}
	if err != nil {
		p.unrecord(unrecorded)
		return err
	}
	if len(present) == 0 {
		return nil
	}
	last, err := p.store.Connections(ctx, ids)
	if err != nil {
		return err
	}
	secrets, err := p.store.Secrets(ctx, ids)
	if err != nil {
		return err
	}
	editions, err := p.store.Editions(ctx, ids)
	if err != nil {
		return err
	}
	for _, c := range present {
		id := c.session.DeviceID()
		switch stored, ok := secrets[id]; {
		case !ok || !hmac.Equal(stored, c.secretHash):
			c.session.End(EndRevoked)
		case c.since.Before(before) && last[id] != c.session.ID() && last[id] != "":
			c.session.End(EndTakenOver)
		case c.lacks(editions[id]):
			p.sendPlaylist(ctx, c)
		}
	}
	open, err := p.store.OpenCommands(ctx, ids, p.moment())
	if err != nil {
		return err
	}
	p.sendCommands(ctx, open)
	return nil
}

func (p *Plane) unrecord(connections []Connection) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range connections {
		if c := p.connections[u.DeviceID]; c != nil && c.session.ID() == u.ID {
			c.recorded = false
		}
	}
}

func (c *connection) lacks(newest Edition) bool {
	c.playlist.Lock()
	defer c.playlist.Unlock()
	return c.playlist.listens && c.playlist.sent.before(newest)
}
