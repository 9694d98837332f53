"""One safe directory format: safetensors beside a manifest, committed by rename. No pickle."""
