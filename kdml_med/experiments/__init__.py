"""Arms × versions × seeds: one plan, trained by the bundles, compared in pairs."""
