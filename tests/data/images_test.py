"""Image files: each kind by its policy, each that is refused by its name."""

import pickle

import numpy as np
import pytest
from PIL import Image

from lora_opt.data.images import Augmentation, Fit, ImageFiles
from tests.data.image_files import colours, png, save

PIXELS = colours()


@pytest.fixture(scope='module')
def files():
  return ImageFiles()


@pytest.mark.parametrize(
  ('name', 'settings'),
  [
    ('a.png', {}),
    ('a.bmp', {}),
    ('a.webp', {'lossless': True}),
    ('wrong_name.jpg', {'format': 'PNG'}),
  ],
)
def test_what_loses_nothing_is_read_as_it_was(tmp_path, files, name, settings):
  found = files[save(tmp_path / name, PIXELS, **settings)]
  assert (found.height, found.width) == (20, 30)
  np.testing.assert_array_equal(found.pixels(), PIXELS)


def test_jpeg_and_the_first_of_a_camera_s_several(tmp_path, files):
  flat = np.full((20, 30, 3), 90, np.uint8)
  plain = files[save(tmp_path / 'a.jpg', flat)].pixels()
  assert np.max(np.abs(plain.astype(int) - 90)) <= 2
  other = [Image.fromarray(255 - flat)]
  several = save(
    tmp_path / 'b.jpg', flat, format='MPO', save_all=True, append_images=other
  )
  np.testing.assert_array_equal(files[several].pixels(), plain)


def test_cmyk_becomes_rgb(tmp_path, files):
  # No ink at all, then all of cyan: the plain formula, within JPEG's losses.
  for inks, wanted in (
    ((0, 0, 0, 0), (255,) * 3),
    ((255, 0, 0, 0), (0, 255, 255)),
  ):
    file = tmp_path / f'{inks[0]}.jpg'
    Image.new('CMYK', (16, 16), inks).save(file)
    assert np.max(np.abs(files[file].pixels().astype(int) - wanted)) <= 3


def test_of_16_bits_the_upper_8_are_taken(tmp_path, files):
  gray = np.arange(600, dtype=np.uint16).reshape(20, 30) * 109
  pixels = files[save(tmp_path / 'a.png', gray)].pixels()
  np.testing.assert_array_equal(pixels, (gray >> 8)[..., None].repeat(3, -1))


@pytest.mark.parametrize('name', ['a.png', 'a.webp'])
def test_white_is_behind_what_is_transparent(tmp_path, files, name):
  alpha = np.full((20, 30, 1), 255, np.uint8)
  alpha[:10] = 0
  settings = {'lossless': True} if name.endswith('webp') else {}
  file = save(tmp_path / name, np.dstack([PIXELS, alpha]), **settings)
  pixels = files[file].pixels()
  assert np.all(pixels[:10] == 255)
  np.testing.assert_array_equal(pixels[10:], PIXELS[10:])


@pytest.mark.parametrize('name', ['a.png', 'a.gif'])
def test_palettes_with_and_without_a_transparent_colour(tmp_path, files, name):
  image = Image.new('P', (4, 2), 1)
  image.putpalette([10, 20, 30, 40, 50, 60])
  image.putpixel((0, 0), 0)
  image.save(tmp_path / name)
  pixels = files[tmp_path / name].pixels()
  assert pixels[0, 0].tolist() == [10, 20, 30]
  assert pixels[1, 1].tolist() == [40, 50, 60]
  image.save(tmp_path / f'clear_{name}', transparency=0)
  pixels = files[tmp_path / f'clear_{name}'].pixels()
  assert pixels[0, 0].tolist() == [255, 255, 255]
  assert pixels[1, 1].tolist() == [40, 50, 60]


@pytest.mark.parametrize('mode', ['1', 'L', 'LA'])
def test_gray_and_black_and_white(tmp_path, files, mode):
  image = Image.fromarray(PIXELS).convert(mode)
  image.save(tmp_path / 'a.png')
  wanted = np.asarray(image.convert('RGB'))
  np.testing.assert_array_equal(files[tmp_path / 'a.png'].pixels(), wanted)


@pytest.mark.parametrize('name', ['a.png', 'a.webp'])
@pytest.mark.parametrize(
  ('turn', 'wanted'),
  [
    (2, PIXELS[:, ::-1]),
    (3, PIXELS[::-1, ::-1]),
    (6, np.rot90(PIXELS, -1)),
    (8, np.rot90(PIXELS)),
    (9, PIXELS),
  ],
)
def test_a_turned_camera_s_picture_is_upright(
  tmp_path, files, name, turn, wanted
):
  exif = Image.Exif()
  exif[0x112] = turn
  settings = {'lossless': True} if name.endswith('webp') else {}
  file = save(tmp_path / name, PIXELS, exif=exif, **settings)
  found = files[file]
  assert (found.height, found.width) == wanted.shape[:2]
  np.testing.assert_array_equal(found.pixels(), wanted)


def test_damaged_exif_turns_nothing(tmp_path, files):
  file = save(tmp_path / 'a.png', PIXELS, exif=b'Exif\0\0MM\0*\xff\xff\xff\xff')
  np.testing.assert_array_equal(files[file].pixels(), PIXELS)


@pytest.mark.parametrize('name', ['a.gif', 'a.webp', 'a.png'])
def test_animations_are_refused(tmp_path, files, name):
  other = [Image.fromarray(255 - PIXELS)]
  file = save(tmp_path / name, PIXELS, save_all=True, append_images=other)
  with pytest.raises(ValueError, match=rf'{name}: an animation of 2 frames'):
    files[file]


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.webp', 'a.gif', 'a.bmp'])
def test_files_that_are_cut_off_are_refused(tmp_path, files, name):
  file = save(tmp_path / name, PIXELS)
  data = file.read_bytes()
  for share in (0.1, 0.6, 0.9):
    part = tmp_path / f'{share}{name}'
    part.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=rf'{name}: (damaged|no image)'):
      files[part]


def test_a_wrong_checksum_is_found(tmp_path, files):
  file = save(tmp_path / 'a.png', PIXELS)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(bytes(data))
  with pytest.raises(ValueError, match=r'a\.png: damaged'):
    files[file]


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', 'an empty file'),
    (b'<html>404', "no image of the formats PNG.*begins with b'<html>404'"),
    (b'II*\0' + b'\0' * 40, 'no image of the formats'),  # TIFF
    (png(2**13 + 1, 2**13), r'8193 x 8192 pixels, at most 67,108,864'),
    (png(60_000, 60_000), 'a decompression bomb, at most 67,108,864'),
    (png(60_000, 5), 'more than 100 times the other'),
    (png(300, 300, b''), 'damaged or cut off'),
  ],
)
def test_what_is_no_image_or_too_large_is_refused(
  tmp_path, files, data, message
):
  file = tmp_path / 'a.png'
  file.write_bytes(data)
  with pytest.raises(ValueError, match=rf'a\.png: .*{message}'):
    files[file]


def test_limits_are_those_that_were_asked_for(tmp_path):
  file = save(tmp_path / 'a.png', PIXELS)
  with pytest.raises(ValueError, match='30 x 20 pixels, at most 599 are'):
    ImageFiles(most_pixels=599)[file]
  with pytest.raises(ValueError, match=r'1,\d+ bytes, at most 100 are read'):
    ImageFiles(most_bytes=100)[file]
  with pytest.raises(ValueError, match='max_image_pixels: expected a whole'):
    ImageFiles(most_pixels=10**9)


def test_missing_files_folders_and_links_are_named(tmp_path, files):
  with pytest.raises(FileNotFoundError, match=r'no a\.png in'):
    files[tmp_path / 'a.png']
  with pytest.raises(ValueError, match='is a folder'):
    files[tmp_path]


def test_a_changed_file_is_not_trained_on(tmp_path):
  file = save(tmp_path / 'a.png', PIXELS)
  files = ImageFiles()
  found = files[file]
  for changed in (PIXELS[::-1], PIXELS[:4, :4], colours(40, 60)):
    save(file, changed)
    with pytest.raises(OSError, match=r'a\.png was changed while'):
      found.pixels()


def test_looking_ahead_finds_the_same(tmp_path):
  paths = [save(tmp_path / f'{i}.png', colours(seed=i)) for i in range(9)]
  (tmp_path / 'bad.png').write_bytes(b'bad')
  ahead, one_by_one = ImageFiles(), ImageFiles()
  ahead.look_ahead([*paths, tmp_path / 'bad.png', tmp_path / 'none.png'])
  ahead = pickle.loads(pickle.dumps(ahead))
  assert [ahead[p] for p in paths] == [one_by_one[p] for p in paths]
  assert len({ahead[p].digest for p in paths}) == 9
  with pytest.raises(ValueError, match=r'bad\.png: no image'):
    ahead[tmp_path / 'bad.png']
  with pytest.raises(FileNotFoundError, match=r'none\.png'):
    ahead[tmp_path / 'none.png']


def test_a_fit_stretches_or_cuts_out_the_middle():
  ramp = np.zeros((10, 30, 3), np.uint8)
  ramp[:, :, 0] = np.arange(30) * 8
  stretched = Fit(8, 8)(ramp)
  assert stretched.shape == (8, 8, 3)
  assert stretched[0, 0, 0] < 20 and stretched[0, -1, 0] > 210
  middle = Fit(8, 8, shorter=10)(ramp)
  np.testing.assert_array_equal(middle, ramp[1:9, 11:19])
  upright = Fit(8, 8, shorter=10)(ramp.swapaxes(0, 1))
  np.testing.assert_array_equal(upright, ramp.swapaxes(0, 1)[11:19, 1:9])


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'height': 0, 'width': 8}, 'Fit: height: expected a whole number'),
    ({'height': 8, 'width': 9, 'shorter': 8}, 'shorter: .* from 9 to'),
    ({'height': 8, 'width': 8, 'resample': 'best'}, 'resample: expected one'),
  ],
)
def test_a_fit_that_is_none_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    Fit(**settings)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'crop': 'centre'}, 'crop: expected one of'),
    ({'flip': 1.5}, 'flip: expected a finite number'),
    ({'area': (0.9, 0.2)}, r'area=\(0.9, 0.2\) must be \(smallest'),
    ({'area': (0.0, 1.0)}, 'area: expected a finite number above 0'),
    ({'aspect': (1.0,)}, 'aspect: expected a list of 2'),
  ],
)
def test_an_augmentation_that_is_none_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    Augmentation(**settings)


@pytest.mark.parametrize('crop', ['none', 'random', 'random_area'])
@pytest.mark.parametrize('fit', [Fit(8, 12), Fit(8, 12, shorter=14)])
def test_what_is_drawn_follows_from_the_key(crop, fit):
  draw = Augmentation(crop=crop, flip=0.5)
  drawn = [draw(PIXELS, fit, (7, 0, place)) for place in range(30)]
  again = [draw(PIXELS, fit, (7, 0, place)) for place in range(30)]
  for first, second in zip(drawn, again, strict=True):
    assert first.shape == (8, 12, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
  different = len({image.tobytes() for image in drawn})
  assert different == 2 if crop == 'none' else different > 10


def test_parts_are_of_the_area_and_proportions_asked_for():
  # Each pixel says where it is, so that a part is known by its corners.
  grid = np.stack(np.meshgrid(np.arange(200), np.arange(100), [0]), -1)
  grid = grid[:, :, 0].astype(np.uint8)
  draw = Augmentation(crop='random_area', area=(0.2, 0.4), aspect=(0.5, 2.0))
  fit = Fit(64, 64, resample='nearest')
  shares, aspects = [], []
  for place in range(200):
    part = draw(grid, fit, (place,)).astype(float)
    width = (part[0, -1, 0] - part[0, 0, 0]) * 64 / 63
    height = (part[-1, 0, 1] - part[0, 0, 1]) * 64 / 63
    shares.append(width * height / 20_000)
    aspects.append(width / height)
  # Whole pixels: sides of about 60 are right within 3 %.
  assert 0.18 < min(shares) < 0.24 and 0.36 < max(shares) < 0.42
  assert 0.45 < min(aspects) < 0.7 and 1.6 < max(aspects) < 2.2


def test_where_no_part_fits_the_whole_is_taken():
  draw = Augmentation(crop='random_area', area=(1.0, 1.0), aspect=(3.0, 3.0))
  np.testing.assert_array_equal(
    draw(PIXELS, Fit(8, 8), (0,)), Fit(8, 8)(PIXELS)
  )


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.webp', 'a.gif', 'a.bmp'])
def test_bytes_at_random_are_refused_or_decoded_the_same_again(
  tmp_path, files, name
):
  whole = save(tmp_path / name, PIXELS).read_bytes()
  rng = np.random.default_rng(0)
  refused = 0
  for number in range(40):
    data = bytearray(whole)
    for place in rng.integers(0, len(data), 1 + number % 4):
      data[place] = rng.integers(0, 256)
    file = tmp_path / f'{number}{name}'
    file.write_bytes(bytes(data))
    try:
      found = files[file]
    except ValueError as error:
      assert str(error).startswith(f'{file}: ')
      refused += 1
    else:
      assert found.pixels().shape == (found.height, found.width, 3)
  assert refused
