package device

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/platform/throttle"
)

const (
	idPrefix   = "dev_"
	ulidLength = 26
)

var idPattern = regexp.MustCompile(`^dev_[0-7][0-9A-HJKMNP-TV-Z]{25}$`)

// Store keeps devices. Its errors are the faults named here, one with which the
// database says that trying again can help, the context's error, or something
// unexpected. What names a device that the organisation does not have fails with
// ErrNotFound.
type Store interface {
	CommandStore
	GroupStore
	LineStore

	// CreateDevice stores a device, unless the request came before: then it returns
	// the one that was made. Errors: ErrRequestIDReused, ErrTooManyDevices.
	CreateDevice(ctx context.Context, r Request, d Device) (Device, error)
	FindDevice(ctx context.Context, organisationID, id string) (Device, error)
	// ListDevices returns up to limit devices whose id is less than before ("" is no
	// bound), the greatest first.
	ListDevices(ctx context.Context, organisationID string, f Filter, before string, limit int) ([]Device, error)
	// SearchDevices is ListDevices for the devices of all organisations.
	SearchDevices(ctx context.Context, s Search, before string, limit int) ([]Device, error)
	// UpdateDevice replaces the settings of a device that has the revision, or any
	// when that is 0; the same settings change nothing. Errors: ErrChanged.
	UpdateDevice(ctx context.Context, organisationID, id string, s Settings, revision int64, now time.Time) (Device, error)
	// DeleteDevice takes the device out of everything but what it played.
	DeleteDevice(ctx context.Context, organisationID, id string, now time.Time) error

	// PutClaimCode makes this the one code of the device.
	PutClaimCode(ctx context.Context, organisationID, id string, code ClaimCode) error
	// Claim uses a code up and gives its device credentials. Errors:
	// ErrClaimCodeInvalid.
	Claim(ctx context.Context, codeHash, secretHash []byte, now time.Time) (deviceID string, err error)
	// Rotate gives a device that has credentials others. Errors: ErrNotClaimed.
	Rotate(ctx context.Context, organisationID, id string, secretHash []byte, now time.Time) error
	Revoke(ctx context.Context, organisationID, id string, now time.Time) error
	// ClaimFailures are when the budgets under these keys are whole again.
	ClaimFailures(ctx context.Context, keys []string) (map[string]time.Time, error)
	// CountClaimFailure counts a wrong code against each of the budgets.
	CountClaimFailure(ctx context.Context, debits []throttle.Debit, now time.Time) error

	// PutPlaylist stores items as the next version, unless they are those of the
	// present one. It fails with what check says of the device, under its lock.
	PutPlaylist(ctx context.Context, organisationID, id string, items []Item, now time.Time, check func(Settings) error) (Playlist, error)
	FindPlaylist(ctx context.Context, organisationID, id string) (Playlist, error)
	// ListPlays returns up to limit sums, the newest hour first, behind a position.
	ListPlays(ctx context.Context, organisationID, id string, span Span, after *HourPosition, limit int) ([]Hour, error)
}

// Request is a write as it is remembered for repeats.
type Request struct {
	CallerID    string
	RequestID   string
	Fingerprint []byte // SHA-256 of the body
	Time        time.Time
	ExpireTime  time.Time
}

// Filter says which devices of an organisation are wanted; its zero value is all.
type Filter struct {
	State State
	// VenueType also stands for those below it.
	VenueType    string
	NameContains string
	// GroupID is of a group that they are in.
	GroupID string
}

// Search says which devices of all organisations are wanted; its zero value is all.
type Search struct {
	IDs            []string
	OrganisationID string
	State          State
	Area           *Area // nil is everywhere
	// VenueTypes also stand for those below them.
	VenueTypes []string
	// MinScreen is what their screens have at least.
	MinScreen Screen
}

// Area is between two parallels and two meridians, in degrees, WGS 84. One whose
// West is greater than its East lies across the 180th meridian.
type Area struct {
	South, West, North, East float64
}

// Service is what the device service does for people and programs.
type Service struct {
	store    Store
	throttle Throttle
	now      func() time.Time
	random   io.Reader
}

// New wires the service. now is the clock, random the source of ids and secrets.
func New(store Store, throttle Throttle, now func() time.Time, random io.Reader) *Service {
	return &Service{store: store, throttle: throttle, now: now, random: random}
}

// moment is now as the database keeps it.
func (s *Service) moment() time.Time { return s.now().UTC().Truncate(time.Microsecond) }

// Create makes a device. callerID is whose request id it is. Errors:
// ErrSettings, ErrRequestIDReused, ErrTooManyDevices.
func (s *Service) Create(ctx context.Context, callerID, requestID, organisationID string, settings Settings) (Device, error) {
	settings, err := settings.cleaned()
	if err != nil {
		return Device{}, err
	}
	now := s.moment()
	r, err := newRequest(callerID, requestID, struct {
		OrganisationID string
		Settings       Settings
	}{organisationID, settings}, now)
	if err != nil {
		return Device{}, err
	}
	id, err := s.newID(idPrefix, now)
	if err != nil {
		return Device{}, err
	}
	made, err := s.store.CreateDevice(ctx, r, Device{
		ID: id, OrganisationID: organisationID, Settings: settings, State: Unclaimed,
		Revision: 1, CreateTime: now, UpdateTime: now,
	})
	if err != nil {
		return Device{}, fmt.Errorf("making a device: %w", err)
	}
	return made, nil
}

// Find returns a device. Errors: ErrNotFound.
func (s *Service) Find(ctx context.Context, organisationID, id string) (Device, error) {
	return s.store.FindDevice(ctx, organisationID, id)
}

// List returns a page of an organisation's devices, the newest first, and the
// token of the next, empty on the last. Errors: paging.ErrTokenInvalid.
func (s *Service) List(ctx context.Context, organisationID string, f Filter, page paging.Page) ([]Device, string, error) {
	of := "devices of " + organisationID
	return paging.List(ctx, of, page, func(ctx context.Context, before string, limit int) ([]Device, error) {
		return s.store.ListDevices(ctx, organisationID, f, before, limit)
	}, func(d Device) string { return d.ID })
}

// Search returns a page of the devices of all organisations, the newest first, and
// the token of the next, empty on the last: what is sold, for the service that sells
// it. Errors: ErrArea, paging.ErrTokenInvalid.
func (s *Service) Search(ctx context.Context, search Search, page paging.Page) ([]Device, string, error) {
	const of = "devices of all organisations"
	if search.Area != nil && search.Area.North < search.Area.South {
		return nil, "", ErrArea
	}
	return paging.List(ctx, of, page, func(ctx context.Context, before string, limit int) ([]Device, error) {
		return s.store.SearchDevices(ctx, search, before, limit)
	}, func(d Device) string { return d.ID })
}

// Update replaces a device's settings. revision 0 overwrites whatever is there.
// Errors: ErrSettings, ErrNotFound, ErrChanged.
func (s *Service) Update(ctx context.Context, organisationID, id string, settings Settings, revision int64) (Device, error) {
	settings, err := settings.cleaned()
	if err != nil {
		return Device{}, err
	}
	return s.store.UpdateDevice(ctx, organisationID, id, settings, revision, s.moment())
}

// Delete takes a device away; a repeat changes nothing. Errors: ErrNotFound.
func (s *Service) Delete(ctx context.Context, organisationID, id string) error {
	return s.store.DeleteDevice(ctx, organisationID, id, s.moment())
}

// newRequest is a write as it is remembered; body is all that it says.
func newRequest(callerID, requestID string, body any, now time.Time) (Request, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return Request{}, fmt.Errorf("making a fingerprint: %w", err)
	}
	sum := sha256.Sum256(text)
	return Request{CallerID: callerID, RequestID: requestID, Fingerprint: sum[:], Time: now, ExpireTime: now.Add(RequestLifetime)}, nil
}

// newID makes an id of a time.
func (s *Service) newID(prefix string, now time.Time) (string, error) {
	id, err := ulid.New(ulid.Timestamp(now), s.random)
	if err != nil {
		return "", fmt.Errorf("making an id: %w", err)
	}
	return prefix + id.String(), nil
}
