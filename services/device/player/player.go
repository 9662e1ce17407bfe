// Package player plays the playlists of displays: it keeps what it needs on disk, and
// hands in each play once the network is there.
package player

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Observer is told what displays do; its methods are called from several goroutines.
type Observer interface {
	// Shows is called when a display begins to show another item; nil is none, for a
	// reason that its status says.
	Shows(d *Display, item *Item)
	// Played is called when a play was written down.
	Played(d *Display, play Play)
	// Identifies is called when somebody wants to see for a while which display it is.
	Identifies(d *Display, duration time.Duration)
	// Says is called with what a person should know: that something does not work,
	// or works again.
	Says(d *Display, text string)
}

// Config is what a player needs.
type Config struct {
	// Dir is the folder of all that is kept; one process uses it at a time.
	Dir string
	// Servers are the addresses to connect to, host:port, or mqtts://host:port for
	// TLS. It is asked before each connection, so that what it returns may change, and
	// be empty for a while.
	Servers func() ([]string, error)
	// Gateways are the URLs of gateways, which have media that a playlist names by a
	// path; nil is none. It is asked each time that one is fetched.
	Gateways func() ([]string, error)
	// Authorities are who may sign the certificates of servers; nil are those that the
	// machine trusts.
	Authorities *x509.CertPool
	Devices     []Credentials
	Observer    Observer
	// Wall is the clock that plays are dated by. It may jump, and not be set.
	Wall func() time.Time
	// JournalLimit is how many bytes of unsent plays a device keeps.
	JournalLimit int64
	// Spread is the time over which the displays begin to connect.
	Spread time.Duration
}

// DefaultJournalLimit has room for some two months of plays of ten seconds.
const DefaultJournalLimit = 64 << 20

// Player plays displays.
type Player struct {
	displays []*Display
	syncer   *syncer
}

// New opens what is kept of each device. Run must be called after it.
func New(cfg Config) (*Player, error) {
	media, err := NewMedia(filepath.Join(cfg.Dir, "media"), cfg.Gateways)
	if err != nil {
		return nil, err
	}
	p := &Player{}
	p.syncer = newSyncer(func(j *Journal, err error) {
		for _, d := range p.displays {
			if d.journal == j {
				d.says("plays may be lost in a power cut: %v", err)
			}
		}
	})
	for _, c := range cfg.Devices {
		d, err := newDisplay(cfg, c, media, p.syncer)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", c.DeviceID, err), p.close())
		}
		p.displays = append(p.displays, d)
	}
	return p, nil
}

// Displays are those that it plays.
func (p *Player) Displays() []*Display { return p.displays }

// Run plays until ctx ends, and then hands in what it can within a second. Errors:
// ErrRefused, of a player with one display that has nothing to play.
func (p *Player) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if len(p.displays) == 1 {
		p.displays[0].nothing = cancel
	}
	flushing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	flushed := make(chan struct{})
	go func() {
		defer close(flushed)
		p.syncer.run(flushing)
	}()
	var all sync.WaitGroup
	for _, d := range p.displays {
		all.Go(func() { d.run(ctx) })
	}
	all.Wait()
	stop()
	<-flushed
	err := p.close()
	if cause := context.Cause(ctx); errors.Is(cause, ErrRefused) {
		return cause
	}
	return err
}

func (p *Player) close() error {
	var problems []error
	for _, d := range p.displays {
		problems = append(problems, d.journal.Close())
	}
	return errors.Join(problems...)
}

// Connection is how a display is connected.
type Connection string

// How a display is connected.
const (
	Connecting Connection = "connecting"
	Connected  Connection = "connected"
	// Offline: it will try again soon.
	Offline Connection = "offline"
	// Refused: its credentials are not good any more.
	Refused Connection = "refused"
	// Replaced: another player has its credentials, and the connection, again.
	Replaced Connection = "replaced"
)

// Status is what a display does at a moment.
type Status struct {
	Connection Connection
	// Playlist is the version that is played; 0 is none.
	Playlist int64
	// Item is what is shown, until Until; nil is nothing.
	Item  *Item
	Until time.Time
	// Off is that nothing is by the schedule, until Until by the clock on the wall; when
	// that is zero nothing more is known of.
	Off bool
	// Identify is until when it is to be seen which display it is.
	Identify time.Time
	// Plays were written down since the start, Unsent of all are not acknowledged,
	// and Held wait for the clock or the disk.
	Plays, Unsent, Held int64
	// Dropped plays were lost: for their age, or for want of room.
	Dropped int64
	// Rejected plays were set aside by the server.
	Rejected int64
}

// Display is one device.
type Display struct {
	credentials  Credentials
	playlistPath string
	servers      func() ([]string, error)
	authorities  *x509.CertPool
	spread       time.Duration
	observer     Observer
	wall         func() time.Time
	media        *Media
	journal      *Journal
	syncer       *syncer
	kept         Playlist        // what is on disk; of take alone
	nothing      func(why error) // is told that it has nothing to play, and will not get it

	takedownsPath string
	keeping       sync.Mutex // of the file at takedownsPath

	changed chan struct{} // the playlist was replaced, or something was taken down
	arrived chan struct{} // wanted was replaced
	written chan struct{} // there are plays to hand in
	handed  chan struct{} // a batch was acknowledged
	toReply chan struct{} // there are replies to send

	mu          sync.Mutex
	playlist    Playlist        // what is played
	there       map[string]bool // hashes of contents that it may show and that are on disk
	wanted      Playlist        // the newest that was received
	refreshing  bool            // the next that is received is wanted, whatever its version
	status      Status
	takedowns   map[string]int64 // versions of playlists, up to which creatives are not shown
	replies     []reply          // to send
	answered    map[string]reply // those of the last commands, by their ids
	answeredIDs []string         // in their order
}

func newDisplay(cfg Config, c Credentials, media *Media, syncer *syncer) (*Display, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	dir := filepath.Join(cfg.Dir, c.DeviceID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making its folder: %w", err)
	}
	d := &Display{
		credentials: c, playlistPath: filepath.Join(dir, "playlist.json"), servers: cfg.Servers, authorities: cfg.Authorities, spread: cfg.Spread,
		observer: cfg.Observer, wall: cfg.Wall, media: media, syncer: syncer,
		changed: make(chan struct{}, 1), arrived: make(chan struct{}, 1), written: make(chan struct{}, 1), handed: make(chan struct{}, 1),
		toReply: make(chan struct{}, 1), there: make(map[string]bool), answered: make(map[string]reply), takedownsPath: filepath.Join(dir, "takedowns.json"),
		status: Status{Connection: Connecting}, nothing: func(error) {},
	}
	kept, err := readPlaylist(d.playlistPath, c.DeviceID)
	if err != nil {
		// The newest comes with the connection.
		d.says("the playlist that was kept is not used: %v", err)
	}
	d.kept = kept
	if d.takedowns, err = readTakedowns(d.takedownsPath); err != nil {
		d.says("what was taken down may be shown until there is a connection: %v", err)
	}
	media.Use(c.DeviceID, kept.Items...)
	d.want(kept)
	journal, cut, err := OpenJournal(filepath.Join(dir, "plays"), cfg.JournalLimit)
	if err != nil {
		return nil, err
	}
	if cut > 0 {
		d.says("the last %d bytes of the journal were no whole record, and are cut off", cut)
	}
	d.journal = journal
	signal(d.written)
	return d, nil
}

// DeviceID is the device's.
func (d *Display) DeviceID() string { return d.credentials.DeviceID }

// Status is what it does now.
func (d *Display) Status() Status {
	unsent := d.journal.Unsent()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status.Unsent, d.status.Playlist = unsent, d.playlist.Version
	return d.status
}

func (d *Display) update(change func(s *Status)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.status)
}

func (d *Display) says(format string, args ...any) {
	d.observer.Says(d, fmt.Sprintf(format, args...))
}

// handInWithin is how long a display hands in plays after it was told to stop.
const handInWithin = time.Second

func (d *Display) run(ctx context.Context) {
	linked, unlink := context.WithCancel(context.WithoutCancel(ctx))
	defer unlink()
	var all sync.WaitGroup
	all.Go(func() { d.connect(linked, ctx) })
	all.Go(func() { d.prepare(ctx) })
	d.play(ctx)
	d.handInLast()
	unlink()
	all.Wait()
}

// handInLast waits until all is acknowledged, while that may be soon.
func (d *Display) handInLast() {
	enough := time.NewTimer(handInWithin)
	defer enough.Stop()
	for d.journal.Unsent() > 0 && d.Status().Connection == Connected {
		select {
		case <-d.handed:
		case <-enough.C:
			return
		}
	}
}

// want takes a playlist that was received, if it is newer or was asked for. One of the
// same version has another schedule, and what that shows: what comes last is so.
func (d *Display) want(p Playlist) {
	d.mu.Lock()
	defer d.mu.Unlock()
	rescheduled := p.Version == d.wanted.Version && !p.equal(d.wanted)
	if p.Version > d.wanted.Version || rescheduled || d.refreshing {
		d.wanted, d.refreshing = p, false
		signal(d.arrived)
	}
}

// use says that the contents of other items may go.
func (d *Display) use(items []Item) {
	d.mu.Lock()
	maps.DeleteFunc(d.there, func(hash string, _ bool) bool {
		return !slices.ContainsFunc(items, func(i Item) bool { return i.SHA256 == hash })
	})
	d.mu.Unlock()
	d.media.Use(d.credentials.DeviceID, items...)
}

// fetch says whether items of a playlist are there before ctx ends.
func (d *Display) fetch(ctx context.Context, p Playlist, items []Item) bool {
	for _, item := range items {
		if err := d.media.Get(ctx, item, func(err error) {
			d.says("version %d of the playlist waits: %v", p.Version, err)
		}); err != nil {
			return false
		}
		d.mu.Lock()
		d.there[item.SHA256] = true
		d.mu.Unlock()
		signal(d.changed)
	}
	return true
}

func (d *Display) newest() Playlist {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wanted
}

// prepare fetches what the newest playlist shows, and then has it played.
func (d *Display) prepare(ctx context.Context) {
	for {
		select {
		case <-d.arrived:
		case <-ctx.Done():
			return
		}
		for again := true; again && ctx.Err() == nil; {
			again = d.prepareNewest(ctx)
		}
	}
}

// prepareNewest returns true when a newer one arrived meanwhile.
func (d *Display) prepareNewest(ctx context.Context) (again bool) {
	p := d.newest()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.take(ctx, p)
	}()
	select {
	case <-done:
	case <-d.arrived:
		again = true
	case <-ctx.Done():
	}
	cancel()
	<-done
	return again
}

// take has a playlist played when what it shows now is there, and then fetches the
// rest: what is booked for later is in nobody's way.
func (d *Display) take(ctx context.Context, p Playlist) {
	d.mu.Lock()
	before := d.playlist
	d.mu.Unlock()
	d.use(slices.Concat(before.Items, p.Items))
	if !d.fetch(ctx, p, p.at(d.clock()).items) {
		return
	}
	d.mu.Lock()
	d.playlist = p
	d.mu.Unlock()
	signal(d.changed)
	d.forgetTakedowns(p.Version)
	if !d.fetch(ctx, p, p.Items) {
		return
	}
	for attempts := 0; !d.kept.equal(p); attempts++ {
		err := p.keep(d.playlistPath)
		if err == nil {
			d.kept = p
			break
		}
		d.says("a restart without a network would find the playlist before this one: %v", err)
		if sleep(ctx, backOff(attempts)) != nil {
			return
		}
	}
	// What this one shows no more went with the one before.
	d.use(p.Items)
	if err := d.media.Tidy(); err != nil {
		d.says("the disk may fill up: %v", err)
	}
}
