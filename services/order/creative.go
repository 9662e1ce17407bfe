package order

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
)

const (
	// MaxCreatives bounds the creatives that an organisation has and has not taken
	// down.
	MaxCreatives = 10_000
	// MaxVersions bounds the versions of a creative.
	MaxVersions = 1_000
	// MaxShownApprovals bounds the approvals that come with a creative: with all its
	// versions they fit into one message.
	MaxShownApprovals = 500

	creativePrefix = "crv_"
	// fitTolerance is by how much a video may be longer than the slot that it is for:
	// encoders end with a whole picture and a whole packet of sound.
	fitTolerance = 250 * time.Millisecond
)

// Creative is something to show.
type Creative struct {
	ID             string // "crv_" and a ULID
	OrganisationID string
	Title          string
	// TakeDownTime is zero while it may be shown.
	TakeDownTime time.Time
	// Versions are those that were asked for, the newest first: never none.
	Versions   []Version
	CreateTime time.Time
}

// Newest is the newest version.
func (c Creative) Newest() Version { return c.Versions[0] }

// Version is one edition of a creative, which never changes.
type Version struct {
	Number int // from 1
	Text   *Text
	Contents
	CreateTime time.Time
	Approvals  []Approval // when they were asked for
}

// Contents are what players get of a version.
type Contents struct {
	// SHA256 is 64 hex digits.
	SHA256    string
	MediaType string
	// Width and Height are in pixels; a text has none.
	Width, Height int
	// Duration is how long a video is; 0 of all else.
	Duration time.Duration
	// Thumbnail is the SHA-256 of a PNG of at most 320 by 320 pixels, or empty.
	Thumbnail string
}

// Fits says whether they can be shown in a slot of this length.
func (c Contents) Fits(slot time.Duration) bool { return slot >= c.ShortestSlot() }

// ShortestSlot is that in which they can be shown.
func (c Contents) ShortestSlot() time.Duration { return max(0, c.Duration-fitTolerance) }

// MediaPath is where media with a SHA-256 are at every gateway; empty without one.
func MediaPath(sha256 string) string {
	if sha256 == "" {
		return ""
	}
	return mediaPath + sha256
}

// Content is what is to be shown: a text, or what was uploaded.
type Content struct {
	Text   *Text
	SHA256 string
}

// What callers that deal with creatives are told.
var (
	ErrContent            = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the creative is not possible")
	ErrCreativeNotFound   = fault.New(fault.NotFound, "CREATIVE_NOT_FOUND", "the organisation has no such creative")
	ErrCreativeChanged    = fault.New(fault.Aborted, "CREATIVE_CHANGED", "the creative was changed by somebody else: read it again")
	ErrCreativeTakenDown  = fault.New(fault.FailedPrecondition, "CREATIVE_TAKEN_DOWN", "the creative was taken down: it is not shown again")
	ErrCreativeDoesNotFit = fault.New(fault.FailedPrecondition, "CREATIVE_DOES_NOT_FIT", "the video is longer than a slot of the display")
	ErrTooManyCreatives   = fault.New(fault.FailedPrecondition, "TOO_MANY_CREATIVES", "the organisation has %d creatives: take one down first", MaxCreatives)
	ErrTooManyVersions    = fault.New(fault.FailedPrecondition, "TOO_MANY_VERSIONS", "the creative has %d versions: make another creative", MaxVersions)
	ErrMediaNotFound      = fault.New(fault.NotFound, "MEDIA_NOT_FOUND", "nothing with this SHA-256 was uploaded: upload it to /v1/media first")
	ErrMediaInvalid       = fault.New(fault.InvalidArgument, "MEDIA_INVALID", "what was uploaded cannot be shown")
	ErrMediaUnavailable   = fault.New(fault.Unavailable, "MEDIA_UNAVAILABLE", "the media store does not answer").WithRetryAfter(time.Second)
	ErrLineNotFound       = fault.New(fault.NotFound, "LINE_NOT_FOUND", "the order has no such line")
	errMediaNotConfigured = fault.New(fault.Unavailable, "MEDIA_UNAVAILABLE", "this platform keeps no media: the order service was started without --media-url").WithRetryAfter(time.Minute)
	errTitleShowsNothing  = ErrContent.WithField("title", "title.visible", "is empty")
)

// Media is where what is shown is kept.
type Media interface {
	// Look says what was uploaded, after looking into it, and keeps a thumbnail where
	// there can be one. Errors: ErrMediaNotFound, ErrMediaInvalid,
	// ErrMediaUnavailable, the context's.
	Look(ctx context.Context, sha256 string) (Contents, error)
	// PutText keeps a text's document and a thumbnail. Errors: ErrMediaUnavailable,
	// the context's.
	PutText(ctx context.Context, t Text) (Contents, error)
}

// CreativeStore keeps creatives and what display owners say to them; it is a part of
// Store. What names a creative that the organisation does not have fails with
// ErrCreativeNotFound.
type CreativeStore interface {
	// RepeatedCreative returns the creative that the first of this request made, with
	// its newest version, if it came before. Errors: ErrRequestIDReused.
	RepeatedCreative(ctx context.Context, r Request, organisationID string) (c Creative, repeated bool, err error)
	// CreateCreative stores a creative with its first version, unless the request came
	// before: then it returns the one that was made. Errors: ErrRequestIDReused,
	// ErrTooManyCreatives.
	CreateCreative(ctx context.Context, r Request, c Creative) (Creative, error)
	// FindCreative returns a creative with its newest version, or with all of them and
	// their approvals.
	FindCreative(ctx context.Context, organisationID, id string, all bool) (Creative, error)
	// ListCreatives returns up to limit creatives whose id is less than before ("" is no
	// bound), the greatest first, with their newest versions.
	ListCreatives(ctx context.Context, organisationID, before string, limit int) ([]Creative, error)
	// UpdateCreative gives a creative the title, and a version unless the newest has
	// these contents. Errors: ErrCreativeChanged, ErrTooManyVersions,
	// ErrCreativeDoesNotFit.
	UpdateCreative(ctx context.Context, e Edit) (Creative, error)
	// TakeDownCreative changes nothing when it was taken down before.
	TakeDownCreative(ctx context.Context, organisationID, id string, now time.Time) (Creative, error)
	// SetLineCreative makes lines of an order show a creative, or none. Errors:
	// ErrNotFound, ErrState, ErrLineNotFound, ErrCreativeTakenDown,
	// ErrCreativeDoesNotFit.
	SetLineCreative(ctx context.Context, l LineCreative) (Order, error)

	ApprovalStore
}

// Edit is a change of a creative.
type Edit struct {
	OrganisationID string
	ID             string
	Title          string
	Text           *Text
	Contents       Contents
	// Version is the one that it was made from; 0 is any.
	Version int
	Time    time.Time
}

// LineCreative is what lines are to show.
type LineCreative struct {
	OrganisationID string
	OrderID        string
	LineIDs        []string // all of the order's without any
	CreativeID     string   // empty is nothing
	Time           time.Time
}

// Lines are those of an order that it is about. Errors: ErrLineNotFound.
func (l LineCreative) Lines(o Order) ([]Line, error) {
	if len(l.LineIDs) == 0 {
		return o.Lines, nil
	}
	return o.some(l.LineIDs)
}

// cleaned is the content as it is stored, and its SHA-256. Errors: ErrContent.
func (c Content) cleaned() (Content, error) {
	if c.Text == nil {
		return c, nil
	}
	t, err := c.Text.cleaned()
	if err != nil {
		return Content{}, err
	}
	_, sum, err := t.Document()
	if err != nil {
		return Content{}, err
	}
	return Content{Text: &t, SHA256: sum}, nil
}

// is says whether a version has this content.
func (c Content) is(v Version) bool {
	return c.SHA256 == v.SHA256 && (c.Text != nil) == (v.Text != nil)
}

func cleanTitle(text string) (string, error) {
	title := strings.TrimSpace(text)
	if title == "" {
		return "", errTitleShowsNothing
	}
	return title, nil
}

// contents are what players will get of a content.
func (s *Service) contents(ctx context.Context, c Content) (Contents, error) {
	if s.media == nil {
		return Contents{}, errMediaNotConfigured
	}
	if c.Text != nil {
		return s.media.PutText(ctx, *c.Text)
	}
	return s.media.Look(ctx, c.SHA256)
}

// CreateCreative makes a creative with its first version. callerID is whose request
// id it is. Errors: ErrContent, ErrMediaNotFound, ErrMediaInvalid,
// ErrMediaUnavailable, ErrTooManyCreatives, ErrRequestIDReused.
func (s *Service) CreateCreative(ctx context.Context, callerID, requestID, organisationID, title string, content Content) (Creative, error) {
	title, err := cleanTitle(title)
	if err != nil {
		return Creative{}, err
	}
	content, err = content.cleaned()
	if err != nil {
		return Creative{}, err
	}
	now := s.moment()
	r, err := newRequest(callerID, requestID, struct {
		Method, OrganisationID, Title string
		Content                       Content
	}{"CreateCreative", organisationID, title, content}, now)
	if err != nil {
		return Creative{}, err
	}
	// A repeat is answered without another look.
	if made, repeated, err := s.store.RepeatedCreative(ctx, r, organisationID); err != nil || repeated {
		return made, err
	}
	contents, err := s.contents(ctx, content)
	if err != nil {
		return Creative{}, err
	}
	id, err := s.newID(creativePrefix, now)
	if err != nil {
		return Creative{}, err
	}
	made, err := s.store.CreateCreative(ctx, r, Creative{
		ID: id, OrganisationID: organisationID, Title: title, CreateTime: now,
		Versions: []Version{{Number: 1, Text: content.Text, Contents: contents, CreateTime: now}},
	})
	if err != nil {
		return Creative{}, fmt.Errorf("making a creative: %w", err)
	}
	return made, nil
}

// UpdateCreative gives a creative a title and a new version, unless its newest has
// this content. version is the one that the edit was made from; 0 is any. Errors: as
// CreateCreative for the content, ErrCreativeNotFound, ErrCreativeChanged,
// ErrTooManyVersions, ErrCreativeDoesNotFit.
func (s *Service) UpdateCreative(ctx context.Context, organisationID, id, title string, content Content, version int) (Creative, error) {
	title, err := cleanTitle(title)
	if err != nil {
		return Creative{}, err
	}
	content, err = content.cleaned()
	if err != nil {
		return Creative{}, err
	}
	found, err := s.store.FindCreative(ctx, organisationID, id, false)
	if err != nil {
		return Creative{}, err
	}
	newest := found.Newest()
	contents := newest.Contents
	if !content.is(newest) {
		if contents, err = s.contents(ctx, content); err != nil {
			return Creative{}, err
		}
	}
	changed, err := s.store.UpdateCreative(ctx, Edit{
		OrganisationID: organisationID, ID: id, Title: title, Text: content.Text, Contents: contents, Version: version, Time: s.moment(),
	})
	if err != nil {
		return Creative{}, fmt.Errorf("changing %s: %w", id, err)
	}
	return changed, nil
}

// FindCreative returns a creative with all its versions and what display owners say
// to them. Errors: ErrCreativeNotFound.
func (s *Service) FindCreative(ctx context.Context, organisationID, id string) (Creative, error) {
	return s.store.FindCreative(ctx, organisationID, id, true)
}

// ListCreatives returns a page of an organisation's creatives with their newest
// versions, the newest creative first, and the token of the next, empty on the last.
// Errors: paging.ErrTokenInvalid.
func (s *Service) ListCreatives(ctx context.Context, organisationID string, page paging.Page) ([]Creative, string, error) {
	of := "creatives of " + organisationID
	return paging.List(ctx, of, page, func(ctx context.Context, before string, limit int) ([]Creative, error) {
		return s.store.ListCreatives(ctx, organisationID, before, limit)
	}, func(c Creative) string { return c.ID })
}

// TakeDownCreative takes a creative off all displays, for good. A repeat changes
// nothing. Errors: ErrCreativeNotFound.
func (s *Service) TakeDownCreative(ctx context.Context, organisationID, id string) (Creative, error) {
	taken, err := s.store.TakeDownCreative(ctx, organisationID, id, s.moment())
	if err != nil {
		return Creative{}, fmt.Errorf("taking down %s: %w", id, err)
	}
	return taken, nil
}

// SetLineCreative says what lines of an order show, all of them when none is named:
// a creative, or without one nothing. Errors: ErrNotFound, ErrState,
// ErrLineNotFound, ErrCreativeNotFound, ErrCreativeTakenDown,
// ErrCreativeDoesNotFit.
func (s *Service) SetLineCreative(ctx context.Context, organisationID, orderID string, lineIDs []string, creativeID string) (Order, error) {
	changed, err := s.store.SetLineCreative(ctx, LineCreative{
		OrganisationID: organisationID, OrderID: orderID, LineIDs: lineIDs, CreativeID: creativeID, Time: s.moment(),
	})
	if err != nil {
		return Order{}, fmt.Errorf("saying what %s shows: %w", orderID, err)
	}
	return changed, nil
}
