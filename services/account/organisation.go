package account

import (
	"context"
	"crypto/hmac"
	"fmt"
	"time"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/platform/throttle"
)

const (
	// MaxOrganisations bounds of how many organisations an account is a member:
	// its access tokens name all of them.
	MaxOrganisations = 50
	// MaxAPIKeys bounds how many API keys of an organisation can be used.
	MaxAPIKeys = 100
	// MaxInvitations bounds how many invitations of an organisation can be accepted.
	MaxInvitations = 100
	// OffersKept is for how long invitations and API keys that cannot be used any
	// more are still listed.
	OffersKept = 30 * 24 * time.Hour

	maxDisplayName = 100
)

// Organisation is a tenant: an advertiser or a display owner.
type Organisation struct {
	// ID is "org_" and a ULID.
	ID string
	// Name is not unique: programs go by the id.
	Name       string
	Kind       OrganisationKind
	CreateTime time.Time
}

// OrganisationKind is what an organisation is on the market, as it is stored.
type OrganisationKind string

// What organisations are.
const (
	KindAdvertiser   OrganisationKind = "ADVERTISER"
	KindDisplayOwner OrganisationKind = "DISPLAY_OWNER"
)

// Member is an account with a role in an organisation.
type Member struct {
	OrganisationID string
	AccountID      string
	// Name is the account's; only lists of members have it.
	Name       string
	Role       auth.Role
	CreateTime time.Time
}

// Membership is an organisation as one of its members sees it.
type Membership struct {
	Organisation Organisation
	Role         auth.Role
}

// Granted are an account's roles at one moment.
type Granted struct {
	// Version grows with each change of the roles.
	Version int64
	Roles   auth.Roles
}

// ChangedAccount is an account whose roles changed while tokens that say
// otherwise may be valid.
type ChangedAccount struct {
	ID      string
	Version int64
	// ExpireTime is from when on those tokens have expired.
	ExpireTime time.Time
}

// What callers of organisations are told, besides auth.ErrNotAMember and
// auth.ErrRoleNotAllowed.
var (
	ErrNameInvalid = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the name holds characters that people cannot tell apart or see").
			WithField("name", "name.characters", "is empty, longer than 100 characters, or holds control or invisible characters or ones that Unicode does not define")
	ErrTooManyOrganisations = fault.New(fault.FailedPrecondition, "TOO_MANY_ORGANISATIONS", "you are a member of %d organisations: leave one first", MaxOrganisations)
	ErrNoSuchMember         = fault.New(fault.NotFound, "MEMBER_NOT_FOUND", "this account is not a member of the organisation")
	ErrLastOwner            = fault.New(fault.FailedPrecondition, "LAST_OWNER", "the organisation would be left without an owner: make another member one first")
	ErrAlreadyAMember       = fault.New(fault.AlreadyExists, "ALREADY_A_MEMBER", "you are a member of this organisation already")
	ErrNoSuchInvitation     = fault.New(fault.NotFound, "INVITATION_NOT_FOUND", "there is no such invitation")
	ErrInvitationUsed       = fault.New(fault.FailedPrecondition, "INVITATION_USED", "the invitation was accepted before")
	ErrInvitationExpired    = fault.New(fault.FailedPrecondition, "INVITATION_EXPIRED", "the invitation has expired: ask for another")
	ErrInvitationRevoked    = fault.New(fault.FailedPrecondition, "INVITATION_REVOKED", "the invitation was revoked")
	ErrTooManyInvitations   = fault.New(fault.FailedPrecondition, "TOO_MANY_INVITATIONS", "the organisation has %d open invitations: revoke one first", MaxInvitations)
	ErrNoSuchAPIKey         = fault.New(fault.NotFound, "API_KEY_NOT_FOUND", "the organisation has no such API key")
	ErrTooManyAPIKeys       = fault.New(fault.FailedPrecondition, "TOO_MANY_API_KEYS", "the organisation has %d API keys: revoke one first", MaxAPIKeys)
	ErrAPIKeysThrottled     = fault.New(fault.ResourceExhausted, "API_KEYS_THROTTLED", "the organisation has made too many API keys lately")
	ErrAPIKeyInvalid        = fault.New(fault.Unauthenticated, "API_KEY_INVALID", "this is not an API key of this environment")
	ErrAPIKeyExpired        = fault.New(fault.Unauthenticated, "API_KEY_EXPIRED", "the API key has expired: make another")
	ErrAPIKeyRevoked        = fault.New(fault.Unauthenticated, "API_KEY_REVOKED", "the API key was revoked")
)

// OrganisationStore keeps organisations. Its errors are as Store's.
type OrganisationStore interface {
	// Change runs do in one transaction: all of it is stored, or nothing when do
	// fails.
	Change(ctx context.Context, do func(ctx context.Context, tx Tx) error) error
	// Granted are an account's roles.
	Granted(ctx context.Context, accountID string) (Granted, error)
	// ListMemberships, ListMembers, ListInvitations and ListAPIKeys return up to
	// limit entries whose organisation's, account's or own id is less than before
	// ("" is no bound), the greatest first.
	ListMemberships(ctx context.Context, accountID, before string, limit int) ([]Membership, error)
	ListMembers(ctx context.Context, organisationID, before string, limit int) ([]Member, error)
	ListInvitations(ctx context.Context, organisationID, before string, limit int) ([]Invitation, error)
	ListAPIKeys(ctx context.Context, organisationID, before string, limit int) ([]APIKey, error)
	// ListOrganisationEvents is ListEvents for an organisation.
	ListOrganisationEvents(ctx context.Context, organisationID, before string, limit int) ([]Event, error)
	// FindOrganisation fails with ErrNotFound.
	FindOrganisation(ctx context.Context, organisationID string) (Organisation, error)
}

// Tx is one transaction on organisations. What it finds is nil when there is no
// such thing. Members and invitations are changed while their organisation is
// locked, API keys while they are.
type Tx interface {
	// Claim takes a request id for the caller of the request, waiting for another
	// with the same id that is under way, and returns the request that holds it:
	// the given one, or one that came before and has not expired at now.
	Claim(ctx context.Context, r Request, now time.Time) (Request, error)
	// Organisation locks out every other change of the organisation.
	Organisation(ctx context.Context, id string) (*Organisation, error)
	AddOrganisation(ctx context.Context, o Organisation) error
	// CountMemberships locks out every other membership of the account.
	CountMemberships(ctx context.Context, accountID string) (int, error)
	Member(ctx context.Context, organisationID, accountID string) (*Member, error)
	CountOwners(ctx context.Context, organisationID string) (int, error)
	// PutMember adds a member or changes its role, and RemoveMember takes it away;
	// both raise the version of the account's roles, at now.
	PutMember(ctx context.Context, m Member, now time.Time) error
	RemoveMember(ctx context.Context, organisationID, accountID string, now time.Time) error
	Invitation(ctx context.Context, id string) (*Invitation, error)
	CountInvitations(ctx context.Context, organisationID string, now time.Time) (int, error)
	// PutInvitation and PutAPIKey add one or change its times.
	PutInvitation(ctx context.Context, i Invitation) error
	// APIKey locks out every other use and change of the key.
	APIKey(ctx context.Context, id string) (*APIKey, error)
	CountAPIKeys(ctx context.Context, organisationID string, now time.Time) (int, error)
	PutAPIKey(ctx context.Context, k APIKey) error
	// Spend counts a use against a budget whose key nobody else uses meanwhile,
	// unless it is used up: then it says for how long.
	Spend(ctx context.Context, d throttle.Debit, now time.Time) (wait time.Duration, err error)
	Record(ctx context.Context, e Event) error
}

// Request is a write as it is remembered for repeats by the same caller.
type Request struct {
	CallerID  string
	RequestID string
	// Fingerprint tells whether a repeat has the same body.
	Fingerprint []byte
	// ResultID is what it made.
	ResultID   string
	ExpireTime time.Time
}

// claim takes a request id for what is to be made under resultID. first is
// false, and made what the first one made, when the request is a repeat. Errors:
// ErrRequestIDReused.
func (s *Service) claim(ctx context.Context, tx Tx, caller auth.Caller, requestID, resultID string, now time.Time, body ...string) (made string, first bool, err error) {
	fingerprint := s.secret.mac(ofRequests, body...)
	holder, err := tx.Claim(ctx, Request{
		CallerID: caller.ID(), RequestID: requestID, Fingerprint: fingerprint, ResultID: resultID, ExpireTime: now.Add(RequestLifetime),
	}, now)
	switch {
	case err != nil:
		return "", false, fmt.Errorf("claiming the request id: %w", err)
	case !hmac.Equal(holder.Fingerprint, fingerprint):
		return "", false, ErrRequestIDReused
	}
	return holder.ResultID, holder.ResultID == resultID, nil
}

// earlier reads what the first request of its id made, for a repeat.
func earlier[T any](ctx context.Context, find func(context.Context, string) (*T, error), id string, made *T) error {
	found, err := find(ctx, id)
	if err == nil && found != nil {
		*made = *found
	}
	return err
}

// displayName is a name as it is stored: without the spaces and forms of letters
// that people cannot tell apart (RFC 8266).
func displayName(name string) (string, error) {
	clean, err := precis.Nickname.String(name)
	if err != nil {
		return "", ErrNameInvalid.Because(err)
	}
	if n := utf8.RuneCountInString(clean); n < 1 || n > maxDisplayName {
		return "", ErrNameInvalid
	}
	return clean, nil
}

// CreateOrganisation makes an organisation with the caller as its owner. Errors:
// ErrNameInvalid, ErrRequestIDReused, ErrTooManyOrganisations.
func (s *Service) CreateOrganisation(ctx context.Context, caller auth.Caller, requestID, name string, kind OrganisationKind, from Origin) (Organisation, error) {
	name, err := displayName(name)
	if err != nil {
		return Organisation{}, err
	}
	event, err := s.event(OrganisationCreated, caller.AccountID, caller.AccountID, from)
	if err != nil {
		return Organisation{}, err
	}
	id, err := newID("org", event.Time, s.random)
	if err != nil {
		return Organisation{}, err
	}
	event.OrganisationID, event.SessionID, event.Role = id, caller.SessionID, auth.Owner
	made := Organisation{ID: id, Name: name, Kind: kind, CreateTime: event.Time}
	err = s.store.Change(ctx, func(ctx context.Context, tx Tx) error {
		before, first, err := s.claim(ctx, tx, caller, requestID, id, event.Time, "CreateOrganisation", name, string(kind))
		if err != nil {
			return err
		}
		if !first {
			return earlier(ctx, tx.Organisation, before, &made)
		}
		if err := s.room(ctx, tx, caller.AccountID); err != nil {
			return err
		}
		if err := tx.AddOrganisation(ctx, made); err != nil {
			return err
		}
		if err := tx.PutMember(ctx, Member{OrganisationID: id, AccountID: caller.AccountID, Role: auth.Owner, CreateTime: event.Time}, event.Time); err != nil {
			return err
		}
		return tx.Record(ctx, *event)
	})
	if err != nil {
		return Organisation{}, fmt.Errorf("making an organisation: %w", err)
	}
	return made, nil
}

// room fails when the account is a member of too many organisations for one more.
func (s *Service) room(ctx context.Context, tx Tx, accountID string) error {
	n, err := tx.CountMemberships(ctx, accountID)
	if err == nil && n >= MaxOrganisations {
		return ErrTooManyOrganisations
	}
	return err
}

// FindOrganisation returns an organisation that the caller has a role in.
func (s *Service) FindOrganisation(ctx context.Context, organisationID string) (Organisation, error) {
	return s.store.FindOrganisation(ctx, organisationID)
}

// ListMemberships returns a page of the caller's organisations.
func (s *Service) ListMemberships(ctx context.Context, caller auth.Caller, page paging.Page) ([]Membership, string, error) {
	return list(ctx, s, "organisations of "+caller.AccountID, page, func(ctx context.Context, before string, limit int) ([]Membership, error) {
		return s.store.ListMemberships(ctx, caller.AccountID, before, limit)
	}, func(m Membership) string { return m.Organisation.ID })
}

// ListMembers returns a page of an organisation's members.
func (s *Service) ListMembers(ctx context.Context, organisationID string, page paging.Page) ([]Member, string, error) {
	return list(ctx, s, "members of "+organisationID, page, func(ctx context.Context, before string, limit int) ([]Member, error) {
		return s.store.ListMembers(ctx, organisationID, before, limit)
	}, func(m Member) string { return m.AccountID })
}

// asOwner runs do in a transaction in which nobody else can change the
// organisation and the caller is one of its owners. The token said so already,
// but it may be minutes old: what makes owners must not depend on that.
func (s *Service) asOwner(ctx context.Context, caller auth.Caller, organisationID string, do func(ctx context.Context, tx Tx) error) error {
	return s.store.Change(ctx, func(ctx context.Context, tx Tx) error {
		organisation, err := tx.Organisation(ctx, organisationID)
		if err != nil {
			return err
		}
		if organisation == nil {
			return auth.ErrNotAMember
		}
		actor, err := tx.Member(ctx, organisationID, caller.AccountID)
		switch {
		case err != nil:
			return err
		case actor == nil:
			return auth.ErrNotAMember
		case actor.Role != auth.Owner:
			return auth.RoleNotAllowed([]auth.Role{auth.Owner})
		}
		return do(ctx, tx)
	})
}

// memberEvent is an event about a member of an organisation.
func (s *Service) memberEvent(kind EventKind, caller auth.Caller, organisationID, accountID string, from Origin) (*Event, error) {
	event, err := s.event(kind, accountID, caller.ID(), from)
	if err != nil {
		return nil, err
	}
	event.OrganisationID, event.SessionID = organisationID, caller.SessionID
	return event, nil
}

// SetRole gives a member another role. Errors: ErrNoSuchMember, ErrLastOwner,
// auth.ErrNotAMember, auth.ErrRoleNotAllowed.
func (s *Service) SetRole(ctx context.Context, caller auth.Caller, organisationID, accountID string, role auth.Role, from Origin) (Member, error) {
	event, err := s.memberEvent(MemberRoleChanged, caller, organisationID, accountID, from)
	if err != nil {
		return Member{}, err
	}
	event.Role = role
	var changed Member
	err = s.asOwner(ctx, caller, organisationID, func(ctx context.Context, tx Tx) error {
		member, err := tx.Member(ctx, organisationID, accountID)
		switch {
		case err != nil:
			return err
		case member == nil:
			return ErrNoSuchMember
		}
		changed = *member
		if member.Role == role {
			return nil
		}
		if err := s.anotherOwner(ctx, tx, *member); err != nil {
			return err
		}
		changed.Role = role
		if err := tx.PutMember(ctx, changed, event.Time); err != nil {
			return err
		}
		return tx.Record(ctx, *event)
	})
	if err != nil {
		return Member{}, fmt.Errorf("changing a role: %w", err)
	}
	return changed, nil
}

// anotherOwner fails with ErrLastOwner when the member is the only owner.
func (s *Service) anotherOwner(ctx context.Context, tx Tx, m Member) error {
	if m.Role != auth.Owner {
		return nil
	}
	owners, err := tx.CountOwners(ctx, m.OrganisationID)
	if err == nil && owners < 2 {
		return ErrLastOwner
	}
	return err
}

// RemoveMember ends a membership. Errors: ErrNoSuchMember, ErrLastOwner,
// auth.ErrNotAMember, auth.ErrRoleNotAllowed.
func (s *Service) RemoveMember(ctx context.Context, caller auth.Caller, organisationID, accountID string, from Origin) error {
	event, err := s.memberEvent(MemberRemoved, caller, organisationID, accountID, from)
	if err != nil {
		return err
	}
	err = s.asOwner(ctx, caller, organisationID, func(ctx context.Context, tx Tx) error {
		return s.remove(ctx, tx, *event)
	})
	if err != nil {
		return fmt.Errorf("removing a member: %w", err)
	}
	return nil
}

// Leave ends the caller's own membership. Errors: ErrNoSuchMember, ErrLastOwner.
func (s *Service) Leave(ctx context.Context, caller auth.Caller, organisationID string, from Origin) error {
	event, err := s.memberEvent(MemberRemoved, caller, organisationID, caller.AccountID, from)
	if err != nil {
		return err
	}
	err = s.store.Change(ctx, func(ctx context.Context, tx Tx) error {
		if _, err := tx.Organisation(ctx, organisationID); err != nil {
			return err
		}
		return s.remove(ctx, tx, *event)
	})
	if err != nil {
		return fmt.Errorf("leaving an organisation: %w", err)
	}
	return nil
}

// remove ends the membership that the event is about.
func (s *Service) remove(ctx context.Context, tx Tx, event Event) error {
	member, err := tx.Member(ctx, event.OrganisationID, event.AccountID)
	switch {
	case err != nil:
		return err
	case member == nil:
		return ErrNoSuchMember
	}
	if err := s.anotherOwner(ctx, tx, *member); err != nil {
		return err
	}
	if err := tx.RemoveMember(ctx, event.OrganisationID, event.AccountID, event.Time); err != nil {
		return err
	}
	return tx.Record(ctx, event)
}

// ListOrganisationEvents returns a page of what happened in an organisation, the
// newest first.
func (s *Service) ListOrganisationEvents(ctx context.Context, organisationID string, page paging.Page) ([]Event, string, error) {
	return list(ctx, s, "events of "+organisationID, page, func(ctx context.Context, before string, limit int) ([]Event, error) {
		return s.store.ListOrganisationEvents(ctx, organisationID, before, limit)
	}, func(e Event) string { return e.ID })
}
