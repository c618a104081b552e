"""One-line faults that the tests must notice: (file, what stands there, what is put in its place, the test that fails)."""

LAYERS, VAE, UNET = "emit/networks/layers.py", "emit/networks/vae.py", "emit/networks/unet.py"
SEG, COMPARISON = "train_seg.py", "tests/test_train_seg.py"
CONTROLNET, TEXT, MODEL = "emit/networks/controlnet.py", "emit/networks/text.py", "emit/model.py"
SCHEDULE, SAMPLERS, GUIDANCE = (f"emit/diffusion/{name}.py" for name in ("schedule", "samplers", "guidance"))
OBJECTIVE, HED = "emit/diffusion/objective.py", "emit/networks/hed.py"
GOLDEN, WHOLE = "tests/networks/test_golden.py", "tests/test_model.py"
DATASET, REPORT = "emit/training/dataset.py", "emit/evaluation/report.py"
STEPS, LOOP = "tests/diffusion/test_samplers.py", "tests/diffusion/test_sample_loop.py"
FORWARD, BOUND = "tests/diffusion/test_schedule.py", "tests/diffusion/test_objective.py"

ROUND = "        return [round(T * (steps - i) / steps) - 1 for i in range(steps)]"
NOISE_1 = "fresh = noise() if stochastic and t_prev >= 0 else torch.zeros_like(z_t)"
SIGMA = "sigma = eta * ((1 - ab_prev) / (1 - ab_t)).sqrt() * (1 - ab_t / ab_prev).sqrt()"
FREQUENCIES = "torch.arange(half, dtype=torch.float32, device=t.device) / half"

MUTANTS = [
    # networks
    (VAE, "nn.GroupNorm(config.groups, channels, eps=1e-6)", "nn.GroupNorm(config.groups, channels, eps=1e-5)", GOLDEN),
    (VAE, "F.pad(x, (0, 1, 0, 1))", "F.pad(x, (1, 1, 1, 1))", "tests/networks/test_vae.py"),
    (VAE, "F.pad(x, (0, 1, 0, 1))", "F.pad(x, (1, 1, 1, 1))", GOLDEN),
    (VAE, "F.pad(x, (0, 1, 0, 1))", "F.pad(x, (1, 0, 1, 0))", GOLDEN),
    (VAE, "self.post_quant_conv(z / self.scale)", "self.post_quant_conv(z)", GOLDEN),
    (VAE, "return self.scale * (self.mean + torch", "return (self.mean + torch", "tests/networks/test_vae.py"),
    (
        VAE,
        "torch.exp(0.5 * self.log_variance) * noise",
        "torch.exp(self.log_variance) * noise",
        "tests/networks/test_vae.py",
    ),
    (VAE, "+ variance - 1 - self.log_variance)", "+ variance - 1 + self.log_variance)", "tests/networks/test_vae.py"),
    (VAE, "log_variance.clamp(-30, 20)", "log_variance", "tests/networks/test_vae.py"),
    (VAE, "for stage in reversed(self.up)", "for stage in self.up", GOLDEN),
    (
        LAYERS,
        "torch.cat([angles.cos(), angles.sin()], dim=1)",
        "torch.cat([angles.sin(), angles.cos()], dim=1)",
        GOLDEN,
    ),
    (LAYERS, FREQUENCIES, FREQUENCIES.replace("/ half", "/ (half - 1)"), GOLDEN),
    (LAYERS, "value, gate = self.proj(x).chunk(2, dim=-1)", "gate, value = self.proj(x).chunk(2, dim=-1)", GOLDEN),
    (LAYERS, "return value * F.gelu(gate)", 'return value * F.gelu(gate, approximate="tanh")', GOLDEN),
    (LAYERS, '"b n (heads d) -> b heads n d"', '"b n (d heads) -> b heads n d"', GOLDEN),
    (LAYERS, "nn.GroupNorm(groups, channels, eps=1e-6)", "nn.GroupNorm(groups, channels, eps=1e-5)", GOLDEN),
    (LAYERS, "nn.GroupNorm(groups, channels, eps=1e-5)", "nn.GroupNorm(groups, channels, eps=1e-6)", GOLDEN),
    (LAYERS, "nn.GroupNorm(groups, out_channels, eps=1e-5)", "nn.GroupNorm(groups, out_channels, eps=1e-6)", GOLDEN),
    (LAYERS, "3, stride=2, padding=1)", "3, stride=2, padding=(1, 1), padding_mode='reflect')", GOLDEN),
    (LAYERS, "x = x + self.attn2(self.norm2(x), context)", "x = x + self.attn2(x, context)", GOLDEN),
    (
        UNET,
        "nn.GroupNorm(config.groups, channels, eps=1e-5)",
        "nn.GroupNorm(config.groups, channels, eps=1e-6)",
        GOLDEN,
    ),
    (UNET, "reversed(control[:-1])", "reversed([control[1], control[0], *control[2:-1]])", GOLDEN),
    (
        UNET,
        "self.middle_block(h, emb, context) + control[-1]",
        "self.middle_block(h + control[-1], emb, context)",
        GOLDEN,
    ),
    (UNET, "torch.cat([h, skip + residual], dim=1)", "torch.cat([skip + residual, h], dim=1)", GOLDEN),
    (CONTROLNET, "self.input_hint_block(hint, emb", "self.input_hint_block(2 * hint - 1, emb", GOLDEN),
    (CONTROLNET, "h, guide = h + guide, None", "h = h + (guide if guide.shape == h.shape else 0)", GOLDEN),
    (
        CONTROLNET,
        "layers.append(zero_module(nn.Conv2d(hint_channels[-1], out_channels, 3, padding=1)))",
        "layers.append(nn.Conv2d(hint_channels[-1], out_channels, 3, padding=1))",
        "tests/networks/test_controlnet.py",
    ),
    (
        CONTROLNET,
        'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")',
        "pass",
        "tests/networks/test_controlnet.py",
    ),
    (
        CONTROLNET,
        "TimestepSequential(zero_module(nn.Conv2d(channels, channels, 1)))",
        "TimestepSequential(nn.Conv2d(channels, channels, 1))",
        "tests/networks/test_controlnet.py",
    ),
    (TEXT, "return self.ln_final(self.transformer(states", "return (self.transformer(states", GOLDEN),
    (
        TEXT,
        "act_layer=QuickGELU if config.quick_gelu else nn.GELU",
        "act_layer=nn.GELU if config.quick_gelu else QuickGELU",
        GOLDEN,
    ),
    (
        TEXT,
        'float("-inf"), device=ids.device).triu(1)',
        "0.0, device=ids.device).triu(1)",
        "tests/networks/test_text.py",
    ),
    (TEXT, "CONTEXT_LENGTH), self.config.pad)", "CONTEXT_LENGTH), 0)", "tests/networks/test_text.py"),
    (HED, "pixels = pixels.flip(1) - ", "pixels = pixels - ", GOLDEN),
    (HED, 'mode="bilinear", align_corners=False', 'mode="bilinear", align_corners=True', GOLDEN),
    (HED, "torch.stack(sides).mean(dim=0)", "torch.stack(sides).sum(dim=0)", GOLDEN),
    (
        UNET,
        "torch.cat([h, skip + residual], dim=1)",
        "torch.cat([h, residual.add_(skip) if torch.is_tensor(residual) else skip], dim=1)",
        "tests/networks/test_controlnet.py",
    ),
    (UNET, "else channels // self.head_size", "else channels // 80", "tests/networks/test_unet.py"),
    (CONTROLNET, "{name: theirs.get(name, own)", "{name: own", "tests/networks/test_controlnet.py"),
    (
        CONTROLNET,
        "[*residuals, self.middle_block_out(h, emb, context)]",
        "[*residuals, self.middle_block_out(h.detach(), emb, context)]",
        "tests/networks/test_controlnet.py",
    ),
    # the whole
    (MODEL, "moments = Memo(encode)", "moments = encode", WHOLE),
    (MODEL, "return image.mean(dim=1, keepdim=True)", "return image[:, :1]", WHOLE),
    (MODEL, 'hint if sampling.guided == "text" else None', "hint", WHOLE),
    (MODEL, 'hint if sampling.guided == "text" else None', "None", WHOLE),
    (MODEL, "torch.randint(0, self.schedule.T,", "torch.randint(1, self.schedule.T,", WHOLE),
    (MODEL, "ControlNet(sizes.unet).copy_encoder(model.unet)", "ControlNet(sizes.unet)", WHOLE),
    (MODEL, "tuple(v) if isinstance(v, list) else v", "v", WHOLE),
    (MODEL, "weight * states[different.index(text)]", "weight * states[0]", WHOLE),
    (MODEL, "weight * states[different.index(text)]", "states[different.index(text)]", WHOLE),
    (
        MODEL,
        "return v_to_eps(z_t, out, self.schedule.at(t))",
        "return v_to_eps(z_t, out, self.schedule.at(t - 1))",
        GOLDEN,
    ),
    (MODEL, "else to_v(z_0, eps, ab)", "else to_v(eps, z_0, ab)", WHOLE),
    (MODEL, "self.predict(z_t, t, unconditional, other_hint,", "self.predict(z_t, t, context, other_hint,", WHOLE),
    (MODEL, "vae=replace(self.sizes.vae, scale=self.vae.scale)", "vae=self.sizes.vae", WHOLE),
    (MODEL, "torch.rand(len(prompts), generator=rng) < rate", "torch.rand(len(prompts), generator=rng) > rate", WHOLE),
    (MODEL, "sampling.strength, count, sampling.guess_mode)", "1.0, count, sampling.guess_mode)", WHOLE),
    (MODEL, "Posterior(mean, log_variance, self.vae.scale)", "Posterior(mean, log_variance, 1.0)", WHOLE),
    (
        "emit/seeds.py",
        "torch.Generator().manual_seed(seed) for seed in seeds",
        "torch.Generator().manual_seed(seed + i) for i, seed in enumerate(seeds)",
        WHOLE,
    ),
    # the mathematics
    (
        SCHEDULE,
        "torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2",
        "torch.linspace(start, end, T, dtype=torch.float64)",
        FORWARD,
    ),
    (SCHEDULE, "torch.where(t >= 0,", "torch.where(t > 0,", FORWARD),
    (
        SCHEDULE,
        "return combine((ab.sqrt(), z_0), ((1 - ab).sqrt(), eps))",
        "return combine((ab.sqrt(), z_0), (1 - ab, eps))",
        FORWARD,
    ),
    (SCHEDULE, "towards_z_t = (1 - beta).sqrt() *", "towards_z_t = (1 - beta) *", FORWARD),
    (
        SCHEDULE,
        "combine((ab.sqrt(), z_t), (-(1 - ab).sqrt(), v))",
        "combine((ab.sqrt(), z_t), ((1 - ab).sqrt(), v))",
        FORWARD,
    ),
    (SAMPLERS, "((1 - ab_prev - sigma**2).sqrt(), eps_hat)", "((1 - ab_prev).sqrt(), eps_hat)", STEPS),
    (SAMPLERS, "((1 - ab_prev - sigma**2).sqrt(), eps_hat)", "(1 - ab_prev - sigma**2, eps_hat)", STEPS),
    (SAMPLERS, SIGMA, SIGMA.replace("(1 - ab_t / ab_prev).sqrt()", "(1 - ab_t / ab_prev)"), STEPS),
    (SAMPLERS, "return mean + combine((variance.sqrt(), noise))", "return mean + combine((variance, noise))", STEPS),
    (SAMPLERS, "combine((1 + 0.5 / r, z0_hat), (-0.5 / r,", "combine((1 + 0.5 * r, z0_hat), (-0.5 * r,", STEPS),
    (SAMPLERS, ROUND, ROUND.replace(") - 1 for", ") - 2 for"), STEPS),
    (
        SAMPLERS,
        "for t, t_prev in pairwise([*kept, t_end])",
        "for t, t_prev in ((t, max(t - 1, -1)) for t in kept)",
        LOOP,
    ),
    (SAMPLERS, "pairwise([*kept, t_end])", "pairwise(kept)", LOOP),
    (SAMPLERS, NOISE_1, NOISE_1.replace("t_prev >= 0", "True"), LOOP),
    (
        SAMPLERS,
        "ab_t, ab_prev = schedule.at(t), schedule.at(t_prev)",
        "ab_t, ab_prev = schedule.at(t), schedule.at(max(t_prev, 0))",
        LOOP,
    ),
    (
        GUIDANCE,
        "eps_uncond + w * (eps_cond - eps_uncond)",
        "eps_cond + w * (eps_cond - eps_uncond)",
        "tests/diffusion/test_guidance.py",
    ),
    (OBJECTIVE, "+ ratio - 1 - ratio.log())", "+ ratio - 1 + ratio.log())", BOUND),
    (
        OBJECTIVE,
        "large_variance(ab_t, ab_prev) if ab_prev == 1 else posterior_variance(ab_t, ab_prev)",
        "large_variance(ab_t, ab_prev)",
        BOUND,
    ),
    # the experiment
    ("emit/generate.py", '() if "one_seed" in habits else (case.id,)', "(case.id,)", "tests/test_compat.py"),
    ("emit/data/prompts.py", '(0.95, "gray, sketch")', '(0.9, "gray, sketch")', "tests/test_compat.py"),
    ("emit/data/prompts.py", "((1 - weight, prompt), (weight, phrase))", "((1, prompt), (weight, phrase))", "tests/test_compat.py"),
    ("emit/compat.py", 'own if "diffboost" in named else named', "named", "tests/test_compat.py"),
    (DATASET, "sorted(order[: settings.real_cases])", "range(settings.real_cases)", "tests/training/test_dataset.py"),
    ("emit/training/config.py", "if value in runs:", "if text in runs:", "tests/training/test_config.py"),
    ("emit/training/config.py", "sweep=(), out=settings.out", "out=settings.out", "tests/training/test_config.py"),
    ("emit/arms.py", 'name == "patches" and self.real is by_patch', 'name == "patches"', "tests/test_arms.py"),
    ("emit/arms.py", 'name == "real_cases" or', "False or", "tests/test_arms.py"),
    (REPORT, '["case_spread"] / math.sqrt(found["cases"])', '["case_spread"]', "tests/evaluation/test_report.py"),
    ("emit/evaluation/fidelity.py", 'found["nearest"] == np', 'found["nearest"] != np', "tests/evaluation/test_fidelity.py"),
    ("emit/evaluation/fidelity.py", "if len(samples) > 1]", "]", "tests/evaluation/test_fidelity.py"),
    # the comparison
    (SEG, "merge(image, other, real)", "merge(other, image, real)", COMPARISON),
    (SEG, "for ids in (split.validation, split.test))", "for ids in (split.test, split.test))", COMPARISON),
    (SEG, "whole.setdefault(case.volume or case.id", "whole.setdefault(case.id", COMPARISON),
    (SEG, 'shuffle="no_shuffle" not in compat', "shuffle=True", COMPARISON),
    (SEG, '"fake_pixel" in compat), (fake, True)', "False), (fake, True)", COMPARISON),
    (SEG, 'if "select_on_test" in compat:', "if False:", COMPARISON),
    (SEG, "slices.sort(key=lambda entry: entry[0].index)", "pass", COMPARISON),
    (SEG, "torch.where(real.to(device), network(image", "torch.where(~real.to(device), network(image", COMPARISON),
]
