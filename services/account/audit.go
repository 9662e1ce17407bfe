package account

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/paging"
)

// EventsKept is for how long audit events are kept.
const EventsKept = 366 * 24 * time.Hour

// Event is one thing that happened, as whom it concerns can read it. It is
// stored together with what it tells of.
type Event struct {
	// ID is "evt_" and a ULID.
	ID   string
	Time time.Time
	Kind EventKind
	// AccountID is the account that it happened to, and OrganisationID the
	// organisation; one may be empty. SubjectID is what else it happened to: an
	// invitation, an API key.
	AccountID      string
	OrganisationID string
	SubjectID      string
	// Role is the one that was given; may be empty.
	Role auth.Role
	// ActorID is the account or API key that did it; empty where it is not known.
	ActorID string
	// SessionID is the session it was done in, or done to.
	SessionID string
	// Address is where it was done from; may be empty.
	Address string
}

// EventKind is what an event is about, as it is stored.
type EventKind string

// What happens to accounts and in organisations.
const (
	SignedUp             EventKind = "SIGNED_UP"
	LoggedIn             EventKind = "LOGGED_IN"
	LogInFailed          EventKind = "LOG_IN_FAILED"
	LoggedOut            EventKind = "LOGGED_OUT"
	SessionRevoked       EventKind = "SESSION_REVOKED"
	RefreshTokenReused   EventKind = "REFRESH_TOKEN_REUSED"
	PasswordChanged      EventKind = "PASSWORD_CHANGED"
	PasswordChangeFailed EventKind = "PASSWORD_CHANGE_FAILED"
	OrganisationCreated  EventKind = "ORGANISATION_CREATED"
	InvitationCreated    EventKind = "INVITATION_CREATED"
	InvitationRevoked    EventKind = "INVITATION_REVOKED"
	MemberJoined         EventKind = "MEMBER_JOINED"
	MemberRoleChanged    EventKind = "MEMBER_ROLE_CHANGED"
	MemberRemoved        EventKind = "MEMBER_REMOVED"
	APIKeyCreated        EventKind = "API_KEY_CREATED"
	APIKeyRevoked        EventKind = "API_KEY_REVOKED"
)

// event makes an event of this moment.
func (s *Service) event(kind EventKind, accountID, actorID string, from Origin) (*Event, error) {
	now := s.now().UTC().Truncate(time.Microsecond)
	id, err := newID("evt", now, s.random)
	if err != nil {
		return nil, err
	}
	return &Event{ID: id, Time: now, Kind: kind, AccountID: accountID, ActorID: actorID, Address: from.Address}, nil
}

// ListEvents returns a page of what happened to the caller's account, the newest
// first, and the token of the next page. Errors: ErrPageTokenInvalid.
func (s *Service) ListEvents(ctx context.Context, caller auth.Caller, page paging.Page) ([]Event, string, error) {
	return list(ctx, s, "events of "+caller.AccountID, page, func(ctx context.Context, before string, limit int) ([]Event, error) {
		return s.store.ListEvents(ctx, caller.AccountID, before, limit)
	}, func(e Event) string { return e.ID })
}
