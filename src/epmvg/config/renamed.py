"""Settings of earlier versions: what each is called now, or why it is gone."""

from __future__ import annotations

RENAMED = {
    "model.preset": "model.name",
    "model.start": "model.init_from",
    "model.set": "model.overrides",
    "model.canvas": "model.image_size",
    "model.length": "model.max_length",
    "model.normalize": "model.pre_fusion_norm",
    "data.images": "data.batch_size",
    "data.phrases": "data.phrases_per_image",
    "data.train": "data.train_split",
    "data.val": "data.val_split",
    "data.share": "data.fraction",
    "data.canvas": "data.image_size",
    "data.workers": "data.num_workers",
    "data.augment.flip": "data.augment.horizontal_flip",
    "data.augment.crop_min": "data.augment.min_crop",
    "data.augment.keep": "data.augment.min_visible",
    "data.augment.jitter": "data.augment.color_jitter",
    "data.augment.move": "data.augment.translate",
    "data.augment.style": "data.augment.recipe",
    "distill.view": "distill.input",
    "distill.distance": "distill.loss",
    "distill.image": "distill.image_weight",
    "distill.text": "distill.text_weight",
    "distill.dense": "distill.dense_weight",
    "loss.giou": "loss.giou_weight",
    "loss.where": "loss.heatmap_weight",
    "loss.similarity": "loss.similarity_weight",
    "loss.regressed": "loss.reg_box_weight",
    "loss.votes": "loss.token_box_weight",
    "loss.score": "loss.iou_head_weight",
    "train.lr_visual": "train.lr_backbone",
    "train.lr_encoder": "train.lr_visual_encoder",
    "train.lr_text": "train.lr_text_encoder",
    "train.schedule": "train.lr_schedule",
    "train.drop": "train.lr_drop",
    "train.warmup": "train.warmup_steps",
    "train.clip": "train.max_grad_norm",
    "train.accumulate": "train.gradient_accumulation_steps",
    "train.checkpoint_layers": "train.gradient_checkpointing",
    "train.store": "train.cache_features",
    "train.store_gb": "train.feature_cache_gb",
    "train.absent": "train.negatives_per_phrase",
    "train.evaluate_every": "train.eval_interval",
    "train.evaluate_limit": "train.eval_limit",
    "train.save_every": "train.save_interval",
    "train.log_every": "train.log_interval",
}
"""Old key -> new key, both dotted."""

RENAMED_VALUES = {
    "distill.input": {"photo": "image", "canvas": "letterboxed"},
    "data.augment.recipe": {"free": "default"},
}
"""New key -> its old values -> its new ones."""

REMOVED = {
    "train.tensorboard": "metrics.jsonl and `epmvg report` show the curves",
    "data.augment.as_published": "data.augment.recipe=transvg keeps the published sizes and crop ranges",
    "distill.fit": "the teacher's embeddings are pooled as in the paper",
    "distill.at": "[VLS] and [CLS] are taken at the fusion's output as in the paper",
}
"""Removed key -> what holds without it."""

OLD_BATCH = {"images": 16, "phrases": 8}
"""Keys of `data` whose product is now `data.batch_size`, and their old defaults."""
