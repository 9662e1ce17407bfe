package stack

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
)

// Secret is one field of a service's Nomad variable nomad/jobs/<service>.
type Secret struct {
	Field string
	// Generate makes it when it is not there yet.
	Generate func() string
	// CopyOf and CopyField, instead, name the service and field it equals, whose
	// secrets are made before.
	CopyOf, CopyField string
}

// randomPassword is 192 bits in characters that need no quoting anywhere.
func randomPassword() string { return base64.RawURLEncoding.EncodeToString(randomBytes(24)) }

// randomKey is 256 bits in base64.
func randomKey() string { return base64.StdEncoding.EncodeToString(randomBytes(32)) }

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the process instead
	return b
}

// What a database's Nomad variable says beside its secrets.
const (
	dataField = "data"
	dataKept  = "kept"
)

func secretsPath(service string) string { return "nomad/jobs/" + service }

// makeSecrets writes what is missing of the services' secrets. They are kept in
// Nomad's encrypted variables; see ByHand for copies of them.
func (s *Stack) makeSecrets(ctx context.Context) error {
	for _, service := range s.cfg.Services {
		if len(service.Secrets) == 0 {
			continue
		}
		if err := s.makeSecretsOf(ctx, service); err != nil {
			return fmt.Errorf("making the secrets of %s: %w", service.Name, err)
		}
	}
	return nil
}

func (s *Stack) makeSecretsOf(ctx context.Context, service Service) error {
	return s.changeVariable(ctx, service.Name, func(items nomad.VariableItems) error {
		for _, secret := range service.Secrets {
			switch {
			case items[secret.Field] != "":
			case secret.CopyOf == "":
				items[secret.Field] = secret.Generate()
			default:
				source, err := s.readSecrets(ctx, secret.CopyOf)
				if err != nil {
					return err
				}
				items[secret.Field] = source.Items[secret.CopyField]
			}
		}
		return nil
	})
}

// markData says in a database's Nomad variable that it has data by now; see
// postgresd's --data-file.
func (s *Stack) markData(ctx context.Context, service string) error {
	return s.changeVariable(ctx, service, func(items nomad.VariableItems) error {
		items[dataField] = dataKept
		return nil
	})
}

// changeVariable changes the items of a service's Nomad variable; change may be
// called several times.
func (s *Stack) changeVariable(ctx context.Context, service string, change func(nomad.VariableItems) error) error {
	variable, err := s.readSecrets(ctx, service)
	if err != nil {
		return err
	}
	before := maps.Clone(variable.Items)
	if err := change(variable.Items); err != nil {
		return err
	}
	if maps.Equal(before, variable.Items) {
		return nil
	}
	// Checked: of two that change it at once one wins, and the other is told.
	_, _, err = s.target.Nomad().Variables().CheckedUpdate(variable, (&nomad.WriteOptions{}).WithContext(ctx))
	var conflict nomad.ErrCASConflict
	switch {
	case errors.As(err, &conflict):
		return s.changeVariable(ctx, service, change)
	case err != nil:
		return fmt.Errorf("writing the Nomad variable %s: %w", variable.Path, err)
	}
	return nil
}

// readSecrets returns a service's Nomad variable; empty when there is none.
func (s *Stack) readSecrets(ctx context.Context, service string) (*nomad.Variable, error) {
	path := secretsPath(service)
	variable, _, err := s.target.Nomad().Variables().Peek(path, (&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("reading the Nomad variable %s: %w", path, err)
	}
	if variable == nil {
		return nomad.NewVariable(path), nil
	}
	return variable, nil
}

// ByHand prepares an instance that is started by hand beside those that Nomad
// runs, and returns the environment it needs: its secrets in files and a Consul
// token with the service's identity and no other right, all readable by their
// owner alone below the cluster's folder.
func (s *Stack) ByHand(ctx context.Context, name string) (map[string]string, error) {
	if _, err := s.service(name); err != nil {
		return nil, err
	}
	variable, err := s.readSecrets(ctx, name)
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(s.target.Dir(), "by-hand", name)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder for secrets: %w", err)
	}
	environment := make(map[string]string, len(variable.Items)+1)
	for field, value := range variable.Items {
		if field == dataField {
			continue
		}
		path := filepath.Join(folder, field)
		if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
			return nil, fmt.Errorf("writing the secret %s of %s: %w", field, name, err)
		}
		environment["MARQUEE_"+strings.ToUpper(field)+"_FILE"] = path
	}
	token, err := s.consulToken(ctx, name, filepath.Join(folder, "consul_token"))
	if err != nil {
		return nil, err
	}
	environment["CONSUL_HTTP_TOKEN"] = token
	return environment, nil
}

// consulToken returns the token kept in path, or a new one when there is none
// or Consul does not know it any more.
func (s *Stack) consulToken(ctx context.Context, service, path string) (string, error) {
	acl := s.target.Consul().ACL()
	kept, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading the Consul token of %s: %w", service, err)
	}
	if len(kept) > 0 {
		if _, _, err := acl.TokenReadSelf((&consul.QueryOptions{Token: string(kept)}).WithContext(ctx)); err == nil {
			return string(kept), nil
		}
	}
	made, _, err := acl.TokenCreate(&consul.ACLToken{
		Description:       service + ", instances started by hand",
		ServiceIdentities: []*consul.ACLServiceIdentity{{ServiceName: service}},
	}, (&consul.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("making a Consul token for %s: %w", service, err)
	}
	if err := os.WriteFile(path, []byte(made.SecretID), 0o600); err != nil {
		return "", fmt.Errorf("keeping the Consul token of %s: %w", service, err)
	}
	return made.SecretID, nil
}
