package device

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/platform/fault"
)

const (
	maxWatches               = 500
	maxWatchesOfOrganisation = 20
	// maxBehind is how many changed devices and plays a watch may have unread.
	maxBehind = 10_000
	// statusesAtOnce is how many devices are read with one query.
	statusesAtOnce = 500
	// playsAtOnce is how many plays are told together.
	playsAtOnce = 500

	// WatchedFor is for how long the plays of an organisation are told to all
	// instances after one of them said that it is watched.
	WatchedFor       = 30 * time.Second
	keepWatchedEvery = 5 * time.Second
	lookEvery        = time.Second
	readAgain        = 200 * time.Millisecond
	// cutAfter is how long a watch that has ended waits for its reader.
	cutAfter = time.Second
)

// What watchers are told.
var (
	ErrWatchBehind      = fault.New(fault.ResourceExhausted, "WATCH_BEHIND", "what happens was not read in time: watch again, perhaps fewer devices")
	ErrTooManyWatches   = fault.New(fault.ResourceExhausted, "TOO_MANY_WATCHES", "%d watches of the organisation, or %d in all, are open at this instance: end one, or try again later", maxWatchesOfOrganisation, maxWatches).WithRetryAfter(5 * time.Second)
	ErrWatchInterrupted = fault.New(fault.Unavailable, "WATCH_INTERRUPTED", "this instance stops, or may have missed changes: watch again").WithRetryAfter(time.Second)
)

// Status is what a watch says of a device.
type Status struct {
	DeviceID        string
	OrganisationID  string
	Name            string
	State           State
	Presence        Presence
	PlaylistVersion int64 // 0 before the first
	Revision        int64
	Deleted         bool
}

// Event is one thing that a watch tells; one of its fields is set.
type Event struct {
	// Status is how a device is now, and for one that was deleted that it was.
	Status *Status
	// Complete says that each device has been told that there was when the watch
	// began.
	Complete bool
	// Plays were stored, at most 500 of them.
	Plays []Play
}

// WatchStore is what watches read. Its errors are as Store's.
type WatchStore interface {
	// Statuses returns up to limit devices of an organisation, without those that
	// were deleted, whose id is less than before ("" is no bound), the greatest
	// first; with ids only those.
	Statuses(ctx context.Context, organisationID string, ids []string, before string, limit int) ([]Status, error)
	// ChangedStatuses are those of these devices that belong to one of the
	// organisations, also deleted ones.
	ChangedStatuses(ctx context.Context, organisationIDs, ids []string) ([]Status, error)
	// KeepWatched has the plays of the organisations told to all instances for
	// WatchedFor.
	KeepWatched(ctx context.Context, organisationIDs []string) error
	// Instances are those of the last hour, with how long each is still believed to
	// run if it is not seen again; not positive for one that is not.
	Instances(ctx context.Context) (map[string]time.Duration, error)
	// PlayersAt are the devices of the organisations whose connections to these
	// instances have not ended, or did in the last minute.
	PlayersAt(ctx context.Context, organisationIDs, instanceIDs []string) ([]string, error)
}

// Watches are those who watch devices at this instance. Word of changes comes over
// the one connection on which the plane listens, and says what changed and not how:
// that is read once for all who watch it, so that a burst of changes costs few
// queries. A watch that goes on has missed nothing; one that may have is ended, so
// that a reader who does not keep up costs a bounded amount of memory and nobody
// else's time.
type Watches struct {
	store WatchStore
	log   hclog.Logger
	wake  chan struct{} // has room for one

	mu    sync.Mutex
	open  map[string]map[*watch]struct{} // by organisation
	count int
	// changed are the devices to be read.
	changed map[string]struct{}
	// batch counts the times that some of them were taken to be read.
	batch int
	// listening and looked are whether changes, and the ends of instances, are heard
	// of from now on.
	listening, looked bool
	stopped           bool
}

// watch is one caller's. Its fields are guarded by Watches.mu.
type watch struct {
	organisationID string
	only           map[string]bool // nil is all
	// after is the last batch that was read before the watch had told all that there
	// was; what comes of it may be older than that.
	after int
	// missed are devices that changed before then.
	missed map[string]struct{}
	// latest are the changed devices that it has not told, in order.
	latest map[string]Status
	order  []string
	plays  []Play
	err    error
	cut    func(error)
	late   *time.Timer   // that calls cut; nil before err
	wake   chan struct{} // has room for one
}

func newWatches(store WatchStore, log hclog.Logger) *Watches {
	return &Watches{
		store: store, log: log, wake: make(chan struct{}, 1),
		open: make(map[string]map[*watch]struct{}), changed: make(map[string]struct{}),
	}
}

// Watch tells how the devices of an organisation are, or those of them that have
// one of the ids, then that it is complete, and then what happens, until ctx ends
// or tell fails. It calls tell for one event after the other. When tell goes on for
// a second after the watch was ended, cut is called, once and from another
// goroutine, with why, and has to make tell return. Errors: ErrNotFound for an id
// that the organisation does not have, ErrWatchBehind, ErrTooManyWatches,
// ErrWatchInterrupted.
func (w *Watches) Watch(ctx context.Context, organisationID string, ids []string, tell func(Event) error, cut func(error)) error {
	one, err := w.join(organisationID, ids, cut)
	if err != nil {
		return err
	}
	return w.leave(one, w.watch(ctx, one, ids, tell))
}

func (w *Watches) watch(ctx context.Context, one *watch, ids []string, tell func(Event) error) error {
	if err := w.store.KeepWatched(ctx, []string{one.organisationID}); err != nil {
		return fmt.Errorf("saying that %s is watched: %w", one.organisationID, err)
	}
	if err := w.snapshot(ctx, one, ids, tell); err != nil {
		return err
	}
	if err := tell(Event{Complete: true}); err != nil {
		return err
	}
	w.begin(one)
	for {
		statuses, plays, err := w.next(ctx, one)
		if err != nil {
			return err
		}
		for _, s := range statuses {
			if err := tell(Event{Status: &s}); err != nil {
				return err
			}
		}
		for some := range slices.Chunk(plays, playsAtOnce) {
			if err := tell(Event{Plays: some}); err != nil {
				return err
			}
		}
	}
}

// snapshot tells how the devices are. It reads them page by page, so that a slow
// reader of many does not keep them all in memory.
func (w *Watches) snapshot(ctx context.Context, one *watch, ids []string, tell func(Event) error) error {
	found := 0
	for before := ""; ; {
		page, err := w.store.Statuses(ctx, one.organisationID, ids, before, statusesAtOnce)
		if err != nil {
			return fmt.Errorf("reading the devices of %s: %w", one.organisationID, err)
		}
		if err := w.ended(one); err != nil {
			return err
		}
		if found += len(page); len(page) < statusesAtOnce && found < len(one.only) {
			return ErrNotFound
		}
		for _, s := range page {
			if err := tell(Event{Status: &s}); err != nil {
				return err
			}
			before = s.DeviceID
		}
		if len(page) < statusesAtOnce {
			return nil
		}
	}
}

func (w *Watches) join(organisationID string, ids []string, cut func(error)) (*watch, error) {
	one := &watch{
		organisationID: organisationID, after: math.MaxInt, cut: cut,
		missed: make(map[string]struct{}), latest: make(map[string]Status), wake: make(chan struct{}, 1),
	}
	if len(ids) > 0 {
		one.only = make(map[string]bool, len(ids))
		for _, id := range ids {
			one.only[id] = true
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped || !w.listening || !w.looked {
		return nil, ErrWatchInterrupted
	}
	of := w.open[organisationID]
	if w.count >= maxWatches || len(of) >= maxWatchesOfOrganisation {
		return nil, ErrTooManyWatches
	}
	if of == nil {
		of = make(map[*watch]struct{})
		w.open[organisationID] = of
	}
	of[one] = struct{}{}
	w.count++
	return one, nil
}

// leave takes a watch out, and says with what it ends.
func (w *Watches) leave(one *watch, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	of := w.open[one.organisationID]
	delete(of, one)
	if w.count--; len(of) == 0 {
		delete(w.open, one.organisationID)
	}
	if one.err == nil {
		return err
	}
	one.late.Stop()
	return one.err
}

// ended is why a watch has been ended; nil while it has not.
func (w *Watches) ended(one *watch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return one.err
}

// begin has a watch told changes from now on. What changed while it told how
// everything was is read again: that may have been told as it was before.
func (w *Watches) begin(one *watch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	one.after = w.batch
	w.touchLocked(maps.Keys(one.missed))
	one.missed = nil
}

// next waits for something to tell.
func (w *Watches) next(ctx context.Context, one *watch) (statuses []Status, plays []Play, err error) {
	for {
		w.mu.Lock()
		for _, id := range one.order {
			statuses = append(statuses, one.latest[id])
		}
		plays, err = one.plays, one.err
		one.plays, one.order = nil, nil
		clear(one.latest)
		w.mu.Unlock()
		if err != nil || len(statuses)+len(plays) > 0 {
			return statuses, plays, err
		}
		select {
		case <-one.wake:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("watching: %w", context.Cause(ctx))
		}
	}
}

// signal wakes who waits for it, now or later.
func signal(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

func (one *watch) wants(deviceID string) bool { return one.only == nil || one.only[deviceID] }

// put keeps the latest status of a device to be told.
func (one *watch) put(s Status) {
	if _, waits := one.latest[s.DeviceID]; !waits {
		one.order = append(one.order, s.DeviceID)
	}
	one.latest[s.DeviceID] = s
	one.bound()
}

// bound ends a watch that has too much to tell, and wakes one that has something.
func (one *watch) bound() {
	if len(one.missed)+len(one.order)+len(one.plays) > maxBehind {
		one.end(ErrWatchBehind)
	}
	signal(one.wake)
}

// end has the watch fail, and forgets what it has not told.
func (one *watch) end(why error) {
	if one.err != nil {
		return
	}
	one.err, one.missed, one.latest, one.order, one.plays = why, nil, nil, nil, nil
	one.late = time.AfterFunc(cutAfter, func() { one.cut(why) })
	signal(one.wake)
}

// Stop ends all watches, and lets nobody watch any more: an instance that stops
// would otherwise wait for them.
func (w *Watches) Stop() {
	w.mu.Lock()
	w.stopped = true
	w.mu.Unlock()
	w.interrupt()
}

// listens says that changes are heard of from now on.
func (w *Watches) listens() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listening = true
}

// deaf says that they are not.
func (w *Watches) deaf() {
	w.mu.Lock()
	w.listening = false
	w.mu.Unlock()
	w.interrupt()
}

// interrupt ends all watches that are open.
func (w *Watches) interrupt() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, of := range w.open {
		for one := range of {
			one.end(ErrWatchInterrupted)
		}
	}
	clear(w.changed)
}

// heard takes in word of a change.
func (w *Watches) heard(c Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch c.Kind {
	case Connected, Disconnected, SettingsChanged, CredentialsChanged, PlaylistChanged:
		w.touchLocked(slices.Values([]string{c.DeviceID}))
	case PlaysStored:
		for one := range w.open[c.OrganisationID] {
			one.played(c.Plays)
		}
	}
}

// played keeps plays to be told.
func (one *watch) played(plays []Play) {
	if one.err != nil {
		return
	}
	before := len(one.plays)
	for _, p := range plays {
		if one.wants(p.DeviceID) {
			one.plays = append(one.plays, p)
		}
	}
	if len(one.plays) > before {
		one.bound()
	}
}

func (w *Watches) touch(ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.touchLocked(slices.Values(ids))
}

// touchLocked has devices read again; nobody needs that while nobody watches.
func (w *Watches) touchLocked(ids func(yield func(string) bool)) {
	if len(w.open) == 0 {
		return
	}
	for id := range ids {
		w.changed[id] = struct{}{}
	}
	signal(w.wake)
}

// callers is how many watches are open.
func (w *Watches) callers() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

// organisations are those that are watched.
func (w *Watches) organisations() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.open))
}

// run keeps the watches going until ctx ends, and then ends them.
func (w *Watches) run(ctx context.Context) {
	defer w.Stop()
	var all sync.WaitGroup
	all.Go(func() { w.follow(ctx) })
	all.Go(func() { w.read(ctx) })
	all.Wait()
}

// read tells watches of devices that changed.
func (w *Watches) read(ctx context.Context) {
	for {
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
		for {
			batch, organisations, ids := w.take()
			if len(ids) == 0 {
				break
			}
			statuses, err := w.store.ChangedStatuses(ctx, organisations, ids)
			if err == nil {
				w.offer(batch, statuses)
				continue
			}
			if ctx.Err() != nil {
				return
			}
			w.log.Warn("watches do not learn of changes yet", "error", err)
			w.touch(ids)
			if !pause(ctx, readAgain) {
				return
			}
		}
	}
}

// pause waits, and says whether ctx still goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// take takes some of the changed devices to be read.
func (w *Watches) take() (batch int, organisations, ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.changed {
		if len(ids) == statusesAtOnce {
			break
		}
		ids = append(ids, id)
		delete(w.changed, id)
	}
	w.batch++
	return w.batch, slices.Collect(maps.Keys(w.open)), ids
}

// offer gives statuses to those who watch the devices.
func (w *Watches) offer(batch int, statuses []Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range statuses {
		for one := range w.open[s.OrganisationID] {
			switch {
			case one.err != nil || !one.wants(s.DeviceID):
			case batch > one.after:
				one.put(s)
			case one.missed != nil:
				one.missed[s.DeviceID] = struct{}{}
				one.bound()
			default:
				w.touchLocked(slices.Values([]string{s.DeviceID}))
			}
		}
	}
}

// follow says whose plays are watched, and looks which instances run: nobody tells
// that one has died, and its players with it.
func (w *Watches) follow(ctx context.Context) {
	var (
		believed map[string]bool
		kept     time.Time
	)
	for next := time.Duration(0); pause(ctx, next); {
		var err error
		if organisations := w.organisations(); len(organisations) > 0 && time.Since(kept) > keepWatchedEvery {
			err = w.store.KeepWatched(ctx, organisations)
			kept = time.Now()
		}
		var now map[string]bool
		if err == nil {
			now, next, err = w.look(ctx, believed)
		}
		if err == nil {
			believed = now
		} else {
			next = lookEvery
		}
		w.mu.Lock()
		w.looked = err == nil
		w.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			w.log.Warn("watches end: it cannot be told which instances run", "error", err)
			w.interrupt()
		}
	}
}

// look has the players of instances read that were believed to run and are not any
// more, or the other way round. It says which are believed now, and when that may
// be different.
func (w *Watches) look(ctx context.Context, believed map[string]bool) (now map[string]bool, next time.Duration, err error) {
	const late = 5 * time.Millisecond // so that the time is over by the database's clock, too
	instances, err := w.store.Instances(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("reading which instances run: %w", err)
	}
	now, next = make(map[string]bool, len(instances)), lookEvery
	var turned []string
	for id, left := range instances {
		now[id] = left > 0
		if left > 0 {
			next = min(next, left+late)
		}
		if now[id] != believed[id] {
			turned = append(turned, id)
		}
	}
	for id, ran := range believed {
		if _, known := instances[id]; ran && !known {
			turned = append(turned, id)
		}
	}
	organisations := w.organisations()
	if len(turned) == 0 || len(organisations) == 0 {
		return now, next, nil
	}
	players, err := w.store.PlayersAt(ctx, organisations, turned)
	if err != nil {
		return nil, 0, fmt.Errorf("reading whose players were at instances that came or went: %w", err)
	}
	w.touch(players)
	return now, next, nil
}
