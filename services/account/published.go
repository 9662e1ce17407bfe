package account

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/paging"
)

// Published is what every service is to know, or a page of it: the keys, each
// with its ExpireTime, the ended sessions and revoked API keys, and the accounts
// whose roles changed; each in a stable order.
type Published struct {
	Keys    []Key
	Ended   []EndedSession
	Changed []ChangedAccount
}

// publishedAtOnce is how many ended sessions and changed accounts together fit
// into an answer that is not paged: 4 MiB is what gRPC sends and takes unless it
// is told otherwise, and one of them is 50 bytes at most.
const publishedAtOnce = 80_000

// PublishedKeys are Published's Keys. Errors: ErrSigningKeysUnavailable.
func (r *Keyring) PublishedKeys() ([]Key, error) {
	now := r.now()
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.publishedKeys(now)
}

// Await returns when what this instance knows is young enough to be published, or
// refreshWait has passed, or ctx has ended: a database that is slow for a moment is
// no reason to send a service away.
func (r *Keyring) Await(ctx context.Context) {
	limit := time.NewTimer(refreshWait)
	defer limit.Stop()
	for {
		r.mu.RLock()
		young, loaded := r.young(r.now()), r.loaded
		r.mu.RUnlock()
		if young {
			return
		}
		select {
		case <-loaded:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (r *Keyring) young(now time.Time) bool {
	return len(r.keys) > 0 && now.Sub(r.refreshed) <= publishFor
}

// publishedKeys fails when this instance has not refreshed for too long.
func (r *Keyring) publishedKeys(now time.Time) ([]Key, error) {
	if !r.young(now) {
		return nil, ErrSigningKeysUnavailable
	}
	var keys []Key
	for _, k := range r.keys {
		if k.ExpireTime = r.schedule.expiry(k, now); k.ExpireTime.After(now) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, bySignFrom)
	return keys, nil
}

// Published returns a page of what is published and the token of the next page,
// empty on the last; a Page without a size is everything. Pages are cut by ids,
// so that the next one may be another instance's: what both know is on one of
// them. Errors: ErrSigningKeysUnavailable, ErrPagesNeeded, ErrPageTokenInvalid.
func (r *Keyring) Published(page paging.Page) (Published, string, error) {
	const of = "what is published"
	after, err := r.secret.openPage(of, page.Token)
	if err != nil {
		return Published{}, "", err
	}
	now := r.now()
	r.mu.RLock()
	keys, err := r.publishedKeys(now)
	ended, changed := r.endedInOrder, r.changedInOrder
	here := make([]EndedSession, 0, len(r.endedHere))
	for id, until := range r.endedHere {
		here = append(here, EndedSession{ID: id, ExpireTime: until})
	}
	r.mu.RUnlock()
	if err != nil {
		return Published{}, "", err
	}
	size := page.Size
	if size == 0 {
		size = publishedAtOnce
		if len(ended)+len(changed)+len(here) > size {
			return Published{}, "", ErrPagesNeeded
		}
	}

	// One more than asked for tells whether there is another page.
	ended, changed = behind(ended, after, size+1), behind(changed, after, size+1)
	if len(here) > 0 {
		slices.SortFunc(here, byID[EndedSession])
		ended = slices.Concat(ended, behind(here, after, size+1))
		slices.SortFunc(ended, byID[EndedSession])
	}
	e, c, last := 0, 0, ""
	for e+c < size && (e < len(ended) || c < len(changed)) {
		if c == len(changed) || e < len(ended) && ended[e].ID < changed[c].ID {
			last = ended[e].ID
			e++
		} else {
			last = changed[c].ID
			c++
		}
	}
	next := ""
	if e < len(ended) || c < len(changed) {
		next = r.secret.sealPage(of, last)
	}
	return Published{Keys: keys, Ended: unexpired(ended[:e], now), Changed: unexpired(changed[:c], now)}, next, nil
}

// published is an ended session or a changed account.
type published interface {
	about() (id string, until time.Time)
}

func (e EndedSession) about() (id string, until time.Time)   { return e.ID, e.ExpireTime }
func (c ChangedAccount) about() (id string, until time.Time) { return c.ID, c.ExpireTime }

func byID[T published](a, b T) int {
	one, _ := a.about()
	other, _ := b.about()
	return strings.Compare(one, other)
}

// behind is what comes after an id in a list in the order of its ids, up to most.
func behind[T published](list []T, after string, most int) []T {
	first, found := slices.BinarySearchFunc(list, after, func(value T, after string) int {
		id, _ := value.about()
		return strings.Compare(id, after)
	})
	if found {
		first++
	}
	return list[first:min(len(list), first+most)]
}

// unexpired is a copy without what has expired at now.
func unexpired[T published](list []T, now time.Time) []T {
	kept := make([]T, 0, len(list))
	for _, value := range list {
		if _, until := value.about(); until.After(now) {
			kept = append(kept, value)
		}
	}
	return kept
}
