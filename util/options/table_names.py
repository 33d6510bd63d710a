"""Names that tables declare, for `early.py`: written by `python -m scripts.write_flags`, do not edit."""

# fmt: off
# ruff: noqa: E501
PRETRAIN = {
    'mask_shapes': ('random', 'block', 'lines', 'noise', 'layer'),
    'scale_heads': ('subpixel', 'shared'),
    'stems': ('native', 'base', 'tokens', 'head'),
}
FINETUNE = {
    'tasks': ('segmentation', 'regression', 'classification'),
    'window_tasks': ('classification',),
    'baselines': ('scratch', 'probe', 'unet', 'trees', 'forest', 'rcf', 'trees+embeddings', 'constant'),
    'default_baselines': ('scratch', 'trees', 'constant'),
    'network_baselines': ('scratch', 'probe', 'unet'),
    'pixel_baselines': ('trees', 'forest', 'rcf', 'trees+embeddings'),
    'class_weights': ('none', 'sqrt', 'balanced'),
    'splits': ('blocks', 'random', 'leaking', 'from_checkpoint'),
    'heads': ('linear', 'upsample'),
    'stems': ('native', 'base', 'tokens', 'head'),
}
PRODUCTS = {
    'embeddings': 'feature vectors of the encoder, one a patch or finer',
    'reconstruction': 'layers predicted from masked views, with spread and error',
    'gapfill': 'layers on their own grids with narrow gaps filled, and the uncertainty',
    'superresolution': 'coarse layers at finer pixels, beside interpolation (models of --stem base)',
    'prediction': 'classes or values that a fine-tuned model predicts',
}
