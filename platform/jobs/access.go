package jobs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
)

// checkTimeout bounds how long Check waits for each of the two.
const checkTimeout = 10 * time.Second

// What can be wrong with the way to a cluster.
const (
	Unreachable = "unreachable" // nobody answers at the address
	Untrusted   = "untrusted"   // somebody answers whom the certificate authority does not vouch for
	Refused     = "refused"     // the token is unknown, expired or missing
)

// AccessError says that a cluster cannot be worked on at all.
type AccessError struct {
	System  string // Nomad or Consul
	Address string // empty when it is not known
	Problem string // Unreachable, Untrusted or Refused
	Err     error
}

// Error names the system, its address and what is wrong; who knows where
// address and token came from adds the fix.
func (e *AccessError) Error() string {
	who := e.System
	if e.Address != "" {
		who += " at " + e.Address
	}
	switch e.Problem {
	case Refused:
		return fmt.Sprintf("%s refuses the token: %v", who, e.Err)
	case Untrusted:
		return fmt.Sprintf("%s shows a certificate that is not trusted: %v", who, e.Err)
	default:
		return fmt.Sprintf("%s does not answer: %v", who, e.Err)
	}
}

// Unwrap is what the attempt to ask got.
func (e *AccessError) Unwrap() error { return e.Err }

// Check asks Nomad and Consul who the tokens' owner is. An error is an
// *AccessError, or ctx's.
func (c *Client) Check(ctx context.Context) error {
	if err := c.checkNomad(ctx); err != nil {
		return err
	}
	return c.checkConsul(ctx)
}

func (c *Client) checkNomad(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	token, _, err := c.nomad.ACLTokens().Self(query(asking))
	var status nomad.UnexpectedResponseError
	said := errors.As(err, &status) && status.HasStatusCode()
	switch {
	case said && strings.Contains(status.Body(), aclDisabled):
		return nil
	case said && refuses(status.StatusCode(), status.Body()):
		err = &AccessError{Problem: Refused, Err: explain(err)}
	case ctx.Err() != nil:
		return fmt.Errorf("asking Nomad: %w", ctx.Err())
	case err != nil:
		err = unreachable(asking, explain(err))
	case token.AccessorID == "anonymous":
		err = &AccessError{Problem: Refused, Err: errors.New("none was given")}
	}
	return at(err, "Nomad", c.nomad.Address())
}

// aclDisabled is what both say of a token where no token is needed.
const aclDisabled = "ACL support disabled"

func (c *Client) checkConsul(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	_, _, err := c.consul.ACL().TokenReadSelf((&consul.QueryOptions{}).WithContext(asking))
	var status consul.StatusError
	said := errors.As(err, &status)
	switch {
	case said && strings.Contains(status.Body, aclDisabled):
		return nil
	case said && refuses(status.Code, status.Body):
		err = &AccessError{Problem: Refused, Err: errors.New(strings.TrimSpace(status.Body))}
	case ctx.Err() != nil:
		return fmt.Errorf("asking Consul: %w", ctx.Err())
	case err != nil:
		err = unreachable(asking, err)
	}
	return at(err, "Consul", "")
}

// refuses says whether an answer is about the token. Nomad answers an expired one
// and one of another form with 500; any other 4xx is somebody else's who listens
// there, or says that HTTPS is wanted.
func refuses(code int, body string) bool {
	return code == http.StatusForbidden || code == http.StatusUnauthorized ||
		code == http.StatusInternalServerError && strings.Contains(body, "token")
}

// unreachable tells a certificate that is not trusted from all other reasons
// why nobody answers.
func unreachable(asking context.Context, err error) *AccessError {
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	switch {
	case errors.As(err, &authority), errors.As(err, &invalid), errors.As(err, &name):
		return &AccessError{Problem: Untrusted, Err: err}
	case asking.Err() != nil:
		return &AccessError{Problem: Unreachable, Err: fmt.Errorf("no answer within %s", checkTimeout)}
	}
	return &AccessError{Problem: Unreachable, Err: err}
}

// at completes an *AccessError; no error stays none.
func at(err error, system, address string) error {
	var access *AccessError
	if errors.As(err, &access) {
		access.System, access.Address = system, address
	}
	return err
}
