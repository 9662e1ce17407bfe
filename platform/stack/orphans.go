package stack

import (
	"context"
	"slices"
)

// Orphans are the jobs that were deployed from nomad-jobs/ (see jobs.ManagedMeta),
// still run, and are none of the platform's services any more; sorted.
func (s *Stack) Orphans(ctx context.Context) ([]string, error) {
	managed, err := s.Jobs().Managed(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(managed, func(id string) bool {
		return slices.ContainsFunc(s.cfg.Services, func(service Service) bool { return service.Name == id })
	}), nil
}

// StopOrphans stops them and returns them. Nomad remembers them for a while, so
// that one can be brought back.
func (s *Stack) StopOrphans(ctx context.Context) ([]string, error) {
	orphans, err := s.Orphans(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range orphans {
		s.say("%s: stopping, because nomad-jobs/ has it no more", id)
		if err := s.Jobs().Stop(ctx, id, false); err != nil {
			return orphans, err
		}
	}
	return orphans, nil
}
